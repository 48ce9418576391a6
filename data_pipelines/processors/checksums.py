"""Numbers with a check in them: bank accounts (IBAN) and payment cards."""

# Characters of an IBAN by country (ISO 13616 registry).
# fmt: off
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28,
    "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23,
    "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24,
    "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24,
    "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}
# Card numbers by issuer: first digits, and how many digits there are.
CARDS = (
    (("4",), (13, 16, 19)),
    (("51", "52", "53", "54", "55"), (16,)),
    (tuple(str(first) for first in range(2221, 2721)), (16,)),
    (("34", "37"), (15,)),
    (("6011", "644", "645", "646", "647", "648", "649", "65"), (16, 19)),
    (("300", "301", "302", "303", "304", "305", "36", "38", "39"), (14,)),
    (tuple(str(first) for first in range(3528, 3590)), (16,)),
)
# fmt: on


def is_card(digits: str) -> bool:
    """Tell whether a number is a card's (ISO/IEC 7812)."""
    by_issuer = any(digits.startswith(first) and len(digits) in long for first, long in CARDS)
    return by_issuer and luhn(digits) and len(set(digits)) > 1


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the Luhn digit of the others."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_iban(written: str) -> bool:
    """Tell whether a text is an IBAN (ISO 13616): the number leaves 1 when divided by 97."""
    letters = written.replace(" ", "")
    number = "".join(str(int(each, 36)) for each in letters[4:] + letters[:4])
    return int(number) % 97 == 1 and len(letters) == IBAN_LENGTHS.get(letters[:2])
