"""Each rule of constrained writing holds for what keeps it and breaks for what does not."""

import pytest

from data_pipelines.verify import constraints

CASES = [
    ({"rule": "words", "count": 4}, "It's a well-known fact.", "One two three"),
    ({"rule": "words", "min": 2}, "a b c", "a"),
    ({"rule": "sentences", "count": 2}, "One. Two 2.5 three!", "One. Two. Three"),
    ({"rule": "lines", "max": 2}, "a\n\nb", "a\nb\nc"),
    ({"rule": "paragraphs", "count": 2}, "a\nb\n\nc", "a\nb"),
    ({"rule": "letters", "count": 3}, "a b1c", "ab"),
    (
        {"rule": "words_per_line", "counts": [1, 2]},
        "rain\nfalls softly",
        "rain falls\nsoftly",
    ),
    ({"rule": "words_per_line", "max": 2}, "a b\nc", "a b c"),
    ({"rule": "word_length", "max": 3}, "the cat", "the mouse"),
    ({"rule": "contains", "words": ["river", "New York"]}, "New York's river", "New York rivers"),
    ({"rule": "contains", "words": ["go"], "times": 2}, "Go, go!", "go gone"),
    ({"rule": "lacks", "words": ["very"]}, "every day", "very good"),
    ({"rule": "lacks_letters", "letters": "e"}, "a lipogram so", "Every"),
    ({"rule": "acrostic", "spells": "sea"}, "Sun\nElk\n- air", "Sun\nAir"),
    ({"rule": "acrostic", "spells": "sea", "unit": "word"}, "Some elks ate", "Some ate"),
    ({"rule": "starts_with", "text": "Once"}, "Once upon", "At once"),
    ({"rule": "ends_with", "text": "end."}, "the end.\n", "the end"),
    ({"rule": "no_rhymes"}, "a cat\nthe dog", "bright light\nthe night"),
    ({"rule": "no_rhymes", "letters": 2}, "the sun\na tree", "the cat\na hat"),
    ({"rule": "unique_words", "longer_than": 2}, "a cat or a dog", "The cat and the dog"),
    ({"rule": "json", "keys": ["a", "b"]}, '{"b": 1, "a": 2}', '{"a": 1}'),
    ({"rule": "json"}, "[1]", "[1"),
    ({"rule": "list_items", "count": 2}, "- a\n- b", "- a\nb"),
    ({"rule": "list_items", "count": 2, "mark": "1."}, "1. a\n2. b", "1. a\n1. b"),
    ({"rule": "upper_case"}, "ALL 3", "All"),
    ({"rule": "lower_case"}, "all 3", "All"),
]


@pytest.mark.parametrize(("rule", "good", "bad"), CASES)
def test_a_rule_holds_and_breaks(rule, good, bad):
    assert constraints.broken(good, (rule,)) == ""
    assert constraints.broken(bad, (rule,)).startswith(rule["rule"])


def test_every_rule_is_tried():
    assert {rule["rule"] for rule, _, _ in CASES} == set(constraints._RULES)
