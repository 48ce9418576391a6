"""Level 0, syntax_basics: conditions, loops, slices, simple text and number work."""

from data_pipelines.synthesis.code_tasks.family import Family
from data_pipelines.synthesis.code_tasks.family import integers
from data_pipelines.synthesis.code_tasks.family import lists
from data_pipelines.synthesis.code_tasks.family import sentences

FAMILIES = (
    Family(
        "count_above",
        ("count_above", "how_many_exceed", "count_large", "number_over_limit"),
        "$xs",
        ("Return how many of $xs are greater than $k.", "Count the entries of $xs above $k."),
        """
$t = 0
for $x in $xs:
    if $x > $k:
        $t += 1
return $t
""",
        ("> $k", "< $k"),
        lambda xs, k: len([x for x in xs if x > k]),
        lambda d, k: [*lists(d, k - 15, k + 15), ([k, k + 1, k - 1],), ([k + 1, k + 2],)],
        lambda d: {"k": d.between(-40, 90)},
    ),
    Family(
        "sum_of_multiples",
        ("sum_of_multiples", "add_multiples", "total_divisible", "multiples_total"),
        "$n",
        (
            "Return the sum of the multiples of $k from 1 to $n, both included.",
            "Add up every number from 1 to $n that $k divides.",
        ),
        """
$t = 0
for $x in range($k, $n + 1, $k):
    $t += $x
return $t
""",
        ("$n + 1", "$n - 1"),
        lambda n, k: k * (n // k) * (n // k + 1) // 2,
        lambda d, k: [(0,), (k - 1,), (k,), (3 * k,), *((d.between(k, 40 * k),) for _ in range(4))],
        lambda d: {"k": d.between(2, 60)},
    ),
    Family(
        "clamp",
        ("clamp", "limit_to_range", "keep_within", "bounded"),
        "$x",
        (
            "Return $x, but not below $lo and not above $hi.",
            "Limit $x to the range from $lo to $hi.",
        ),
        """
if $x < $lo:
    return $lo
if $x > $hi:
    return $hi
return $x
""",
        ("> $hi", "> $lo"),
        lambda x, lo, hi: sorted((lo, x, hi))[1],
        lambda d, lo, hi: [
            (lo - 1,),
            (lo,),
            (hi,),
            (hi + 1,),
            ((lo + hi) // 2,),
            (lo + 1,),
            (hi - 1,),
            (d.between(lo, hi),),
            (d.between(lo - 50, hi + 50),),
        ],
        lambda d: {"lo": (low := d.between(-60, 40)), "hi": low + d.between(5, 90)},
    ),
    Family(
        "scale_reading",
        ("convert_reading", "scaled", "to_other_scale", "linear_value"),
        "$x",
        (
            "Return $x times $k, plus $m.",
            "Convert the reading $x: multiply by $k and then add $m.",
        ),
        """
$out = $x * $k
return $out + $m
""",
        ("+ $m", "- $m"),
        lambda x, k, m: (x + m / k) * k if k == 1 else k * x + m,
        lambda d, k, m: [(0,), (1,), (-1,), *((d.between(-90, 90),) for _ in range(4))],
        lambda d: {"k": d.between(2, 60), "m": d.between(1, 300)},
    ),
    Family(
        "every_kth",
        ("every_kth", "pick_regularly", "thin_out", "sparse_copy"),
        "$xs",
        (
            "Return a list of every entry of $xs whose position is a multiple of $k.",
            "Keep the first of $xs and then each one that is $k places further.",
        ),
        """
$out = []
$i = 0
while $i < len($xs):
    $out.append($xs[$i])
    $i += $k
return $out
""",
        ("$i = 0", "$i = 1"),
        lambda xs, k: xs[::k],
        lambda d, k: [*lists(d, -50, 99, longest=18), (integers(d, 0, 99, k + 1),)],
        lambda d: {"k": d.between(2, 6)},
    ),
    Family(
        "count_character",
        ("count_character", "occurrences", "times_seen", "letter_frequency"),
        "$s",
        (
            "Return how often $ch occurs in $s, in either case.",
            "Count $ch in $s without regard to upper and lower case.",
        ),
        """
$t = 0
for $c in $s:
    if $c.lower() == $ch:
        $t += 1
return $t
""",
        ("$c.lower()", "$c"),
        lambda s, ch: s.count(ch) + s.count(ch.upper()),
        lambda d, ch: [*sentences(d), (ch.upper() + "x" + ch,), (ch * 3,)],
        lambda d: {"ch": d.pick("aeiorstnl")},
    ),
    Family(
        "grade_label",
        ("grade_label", "rate_score", "label_for", "describe_level"),
        "$x",
        (
            "Return $low below $k1, $mid from $k1 to below $k2, and $top from $k2 on.",
            "Name the band of $x: $low under $k1, $top at $k2 or more, else $mid.",
        ),
        """
if $x < $k1:
    return $low
if $x < $k2:
    return $mid
return $top
""",
        ("$x < $k2", "$x <= $k2"),
        lambda x, k1, k2, low, mid, top: (low, mid, top)[(x >= k1) + (x >= k2)],
        lambda d, k1, k2, low, mid, top: [
            (k1 - 1,),
            (k1,),
            (k1 + 1,),
            (k2 - 1,),
            (k2,),
            (k2 + 1,),
            (k1 - 20,),
            (k2 + 20,),
        ],
        lambda d: (
            dict(
                zip(
                    ("low", "mid", "top"),
                    d.pick(
                        (
                            ("low", "medium", "high"),
                            ("cold", "mild", "hot"),
                            ("small", "fair", "large"),
                            ("slow", "steady", "fast"),
                            ("poor", "good", "great"),
                            ("dry", "moist", "wet"),
                        )
                    ),
                )
            )
            | {"k1": (first := d.between(-20, 60)), "k2": first + d.between(3, 60)}
        ),
    ),
    Family(
        "join_with_ends",
        ("decorate", "frame_text", "wrapped", "with_border"),
        "$s",
        (
            "Return $s in upper case between $pre and $post; an empty $s stays empty.",
            "Put $pre before and $post after the upper-case form of $s, unless it is empty.",
        ),
        """
if not $s:
    return ""
return $pre + $s.upper() + $post
""",
        (".upper()", ".lower()"),
        lambda s, pre, post: f"{pre}{s.upper()}{post}" if s else "",
        lambda d, pre, post: sentences(d),
        lambda d: dict(
            zip(("pre", "post"), d.sample(("<<", ">>", "**", "--", "##", "~", "[", "]"), 2))
        ),
    ),
)
