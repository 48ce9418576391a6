"""Some 600 strings that a launcher must pass on as they are, or refuse: shells, options, Unicode.

Made from parts, the same at each run. `MARKER` names a file that none of them may make: most would
do so where a shell, or ssh itself, took them for commands.
"""

import itertools

MARKER = "hostile_marker"

COMMANDS = (f"touch {MARKER}", f"touch${{IFS}}{MARKER}", f"echo>{MARKER}", f">{MARKER}")
WRAPPERS = (
    "{}", "; {}", ";{};", "| {}", "|{}", "|| {}", "& {}", "&& {}", "&& {} &&", "$({})", "`{}`",
    "x$({})", "x`{}`y", "\"; {}; \"", "'; {}; '", "';{};'", "\"$({})\"", "'$({})'", "'\"; {} #",
    "'\"'\"'; {}; '\"'\"'", "\\'; {}; \\'", "\\\"; {}; \\\"", "\n{}\n", "x\n{}", "\r\n{}",
    "x\r{}", "( {} )", "{{ {}; }}", "<({})", ">({})", "$'\\x3b' {}", "a;{}#", "a\t;{}",
    "$(({}))", "${{x:-$({})}}", "*;{}", "~;{}", "!{}", "!!;{}", "%s;{}", "#{{{}}}", "={}",
    "x=$({})", "eval {}", "exec {}", "\\$({})", "\\\\$({})", "\\`{}\\`", "$\\({})", "host;{}",
    "host {}", "user@host;{}", "../$({})", "./;{}", "/tmp/x;{}", "a b;{}", "a'b;{}", "a\"b;{}",
    "\x00;{}", "\x1b[2J;{}", "\u2028{}", "\u202e{}", "；{}", "＄({})", "‘;{};’", "é;{}", "🙂;{}",
    "%0a{}", "%3b{}", "&#59;{}",
)  # fmt: skip
OPTIONS = (
    "-oProxyCommand={}", "-o ProxyCommand={}", "-oLocalCommand={}", "-oPermitLocalCommand=yes",
    "-oKnownHostsCommand={}", "--rsh={}", "-e {}", "-e", "--rsync-path={}",
    "--files-from=/etc/passwd", "--delete", "-F/dev/stdin", "-F", "-J{}", "-i", "-l", "-p",
    "-D8000", "-R8000", "-w0", "-W x:1", "-", "--", "---", "-v", "-h", "--help", "--version",
    "--command={}", "--worker=all", "-x;{}", "--impersonate-service-account=x",
    "--flags-file=/etc/passwd", "--wrap={}", "-Wall", "-c{}",
)  # fmt: skip
PLAIN = (
    "", " ", "  ", "\t", "\n", "\r", "\x00", "\x7f", "\x80", "\ufeff", "\u200b", "\ud800",
    "a" * 5000, "a" * 300, "..", "../..", "/", "//", "/dev/null", "/dev/stdin", "~", "~root",
    "~/../..", "*", "?", "[a-z]*", "{a,b}", "{1..9}", "$HOME", "${HOME}", "$0", "$$", "$?", "!!",
    "!$", "^a^b", "%n", "%s%s%s", "%d", "{0}", "{}", "\\", "\\\\", "\\n", "'", "''", '"', '""',
    "`", "``", "#", "# x", ";", ";;", "&", "&&", "|", "||", "<", ">", ">>", "<<EOF", "2>&1", "(",
    ")", "()", "[", "]", "{", "}", "=", "a=b", "a=b c=d", "host:path", "host::module",
    "rsync://h/m", "user@host", "@", "@x", ":", "::", "::1", ",", "a,b", "é", "ß", "İ", "日本",
    "العربية", "e\u0301", "\u0430dmin", "xn--", "🙂", "\u202egnp", "１２７.0.0.1", "0x7f.1",
    "127.1",
    "null", "None", "true", "yes", "NaN", "1e999", "__proto__", "CON", "aux", ".", ".x", "x.",
    "x/", "/x", "a/b", "a/../b", "a//b", "a b", " a", "a ", "a\tb", "--x y",
    "x -oProxyCommand=y", "x' -oProxyCommand='y", "'x'", '"x"', "<script>", "{{7*7}}",
    "${{7*7}}", "*{7*7}", "%{7*7}", "!!python/x", "&a [*a]", "- x", "x: y", "|-", "@@version",
    "' or '1'='1", "-1", "0", "65536", "/etc/passwd\x00.png",
)  # fmt: skip

STRINGS = tuple(
    dict.fromkeys(
        [
            *(wrapper.replace("{}", c).replace("{{", "{").replace("}}", "}")
              for wrapper, c in itertools.product(WRAPPERS, COMMANDS)),
            *(f"x{wrapper.replace('{}', COMMANDS[0])}" for wrapper in WRAPPERS),
            *(option.replace("{}", c) for option, c in itertools.product(OPTIONS, COMMANDS)),
            *PLAIN,
        ]
    )
)  # fmt: skip
