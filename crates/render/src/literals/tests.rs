use super::*;

#[test]
fn only_numbers_that_would_be_printed_otherwise_are_found() {
    let found = |source: &str| -> Vec<String> {
        let found = rewritten(source, &SyntaxConfig::default());
        found
            .iter()
            .map(|literal| {
                assert!(source[literal.offset..].starts_with(literal.text));
                let printed = literal.printed.as_deref().unwrap_or("is out of range");
                format!("{} {printed}", literal.text)
            })
            .collect()
    };
    for (source, wanted) in [
        ("{{ 1.10 }}", "1.10 1.1"),
        ("{% set v = 1e3 %}", "1e3 1000.0"),
        ("{{ values.x | default(0x1F) }}", "0x1F 31"),
        ("{{ 'a' ~ 1_000 }}", "1_000 1000"),
        ("{{ [0123] }}", "0123 123"),
        ("{{ -1.50 }}", "1.50 1.5"),
        ("{{ f(-1.50) }}", "1.50 1.5"),
        ("{{ {'a': 1e-7} }}", "1e-7 0.0000001"),
        ("{{ x if y else -1.50 }}", "1.50 1.5"),
        ("{{ x or -1.50 }}", "1.50 1.5"),
        ("{{ x and +1.50 }}", "1.50 1.5"),
        ("{% if -1.50 %}{% endif %}", "1.50 1.5"),
        ("{% for x in -1.50 %}{% endfor %}", "1.50 1.5"),
        (
            "{{ 18446744073709551616 }}",
            "18446744073709551616 is out of range",
        ),
    ] {
        assert_eq!(found(source), [wanted], "{source}");
    }
    for source in [
        "1.10 {# 1.10 #} {% raw %}{{ 1.10 }}{% endraw %}",
        "{{ 1.1 }} {{ 10 }} {{ '1.10' }} {{ 1.0 }}",
        "{{ values.x * 1.10 }} {{ 1e3 + x }} {{ x - 0x10 }} {{ (x) - 1_000 }}",
        "{% if x >= 0.50 %}{% endif %}",
        "{{ values.in - 1.50 }} {{ (x or y) + 1.50 }} {{ x if y - 1.50 else z }}",
        "{{ values.list[0] }}",
    ] {
        assert_eq!(found(source), [""; 0], "{source}");
    }
}
