use super::*;

#[test]
fn spreads_are_nearest_ranks() {
    let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
    let spread = Spread {
        min: 1.0,
        median: 100.0,
        p99: 198.0,
        max: 200.0,
    };
    assert_eq!(Spread::of(&samples), spread);
    assert_eq!(Spread::of(&[3.0]).p99, 3.0);
}

#[test]
fn tables_say_how_much_better() {
    let ours = Row::new("muster", "objects/s", vec![100_000.0, 200_000.0, 300_000.0]);
    let peer = Row::new("peer", "objects/s", vec![4_000.0]).beside(&ours);
    let section = Section::new("x", "Things", vec![ours, peer], vec!["A note.".into()]);
    let table = section.table();
    assert!(
        table.starts_with(
            "### Things\n\n| | unit | min | median | P99 | max | Muster is |\n\
                 |---|---|--:|--:|--:|--:|--:|\n\
                 | muster | objects/s | 100,000 | 200,000 | 300,000 | 300,000 |  |\n\
                 | peer | objects/s | 4,000 | 4,000 | 4,000 | 4,000 | 50.0 × |\n\n- A note.\n"
        ),
        "{table}"
    );
}

#[test]
fn only_the_block_of_a_text_changes() {
    let text = "a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nb\n";
    let new = "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nb\n";
    assert_eq!(replace_block(text, "new\n").as_deref(), Some(new));
    assert_eq!(replace_block("no markers", "new"), None);
}
