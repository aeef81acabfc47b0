use super::*;

#[test]
fn only_numbers_that_would_be_printed_otherwise_are_found() {
    let found = |source: &str| -> Vec<String> {
        let found = rewritten(source, &SyntaxConfig::default());
        found
            .iter()
            .map(|literal| {
                assert!(source[literal.offset..].starts_with(literal.text));
                format!("{} {}", literal.text, literal.printed)
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
    ] {
        assert_eq!(found(source), [wanted], "{source}");
    }
    for source in [
        "1.10 {# 1.10 #} {% raw %}{{ 1.10 }}{% endraw %}",
        "{{ 1.1 }} {{ 10 }} {{ '1.10' }} {{ 1.0 }}",
        "{{ values.x * 1.10 }} {{ 1e3 + x }} {{ x - 0x10 }} {{ (x) - 1_000 }}",
        "{% if x >= 0.50 %}{% endif %}",
        "{{ values.list[0] }}",
    ] {
        assert_eq!(found(source), [""; 0], "{source}");
    }
}
