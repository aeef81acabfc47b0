use super::*;

#[test]
fn the_first_difference_is_named() {
    for (old, new, told) in [
        (
            "a\nb\nc\n",
            "a\nx\ny\n",
            "line 2:\n  it has b\n  it should have x",
        ),
        (
            "a\n",
            "a\nb\n",
            "line 2:\n  it has no such line\n  it should have b",
        ),
        (
            "a\nb\n",
            "a\n",
            "line 2:\n  it has b\n  it should have no such line",
        ),
        (
            "a\nb",
            "a\nb\n",
            "line 2:\n  it has b (without a newline at the end)\n  it should have b",
        ),
    ] {
        assert_eq!(difference(old, new), told);
    }
}
