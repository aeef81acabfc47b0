use super::*;

#[test]
fn a_problem_shows_its_line() {
    let problem = Problem::new(Scope::Fleet, "fleet.yaml", "unknown field `valuse`")
        .at(
            "kind: Fleet\nspec:\n\tvaluse: {}\n",
            Pos { line: 3, col: 2 },
        )
        .help("did you mean `values`?");
    insta::assert_snapshot!(problem.to_string(), @r"
        fleet.yaml:3:2: unknown field `valuse`
           |
         3 | 	valuse: {}
           | 	^
           = help: did you mean `values`?
        ");
}

#[test]
fn a_problem_in_no_file_is_only_its_message() {
    let problem = Problem::of_hub("the disk is full", "free space");
    insta::assert_snapshot!(problem.to_string(), @r"
        the disk is full
           = help: free space
        ");
}

#[test]
fn near_words_are_suggested() {
    assert_eq!(nearest("valuse", ["values", "labels"]), Some("values"));
    assert_eq!(nearest("zebra", ["values", "labels"]), None);
    assert_eq!(nearest("AE", ["AS", "EU"]), Some("AS"));
    assert_eq!(nearest("A", ["AF", "EU"]), Some("AF"));
    for word in ["", "X", "XX"] {
        assert_eq!(nearest(word, ["AF", "EU"]), None, "{word}");
    }
    assert_eq!(
        suggest("q", ["eu-west", "us-east"]).unwrap(),
        "use one of: eu-west, us-east"
    );
}
