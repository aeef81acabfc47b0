use super::*;

fn tally(text: &str, good: bool) -> (Tally, Vec<Event>) {
    let mut tally = Tally::default();
    let events = text.lines().filter_map(|line| tally.line(line)).collect();
    tally.end(good);
    (tally, events)
}

#[test]
fn results_of_all_programs_are_added() {
    let text = "\u{1b}[1m\u{1b}[32m     Running\u{1b}[0m unittests src/lib.rs (target/debug/deps/muster_model-0a1b)\n\
            test yaml::reads ... ok\n\
            test result: \u{1b}[32mok\u{1b}[0m. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            \x20    Running tests/it/main.rs (target/debug/deps/it-9)\n\
            test killed ... FAILED\n\
            failures:\n    killed\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s\n\
            \x20  Doc-tests muster_model\n\
            test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
    let (tally, events) = tally(text, false);
    assert_eq!(
        tally.count,
        Count {
            passed: 15,
            failed: 1
        }
    );
    assert_eq!(tally.failures, ["muster_model: tests/it/main.rs: killed"]);
    assert_eq!(
        events,
        [
            Event::Started,
            Event::Ended("muster_model: src/lib.rs".into()),
            Event::Started,
            Event::Ended("muster_model: tests/it/main.rs".into()),
            Event::Started,
            Event::Ended("muster_model: examples".into()),
        ]
    );
}

#[test]
fn a_program_that_dies_is_a_failure() {
    let text = "     Running tests/it/main.rs (target/debug/deps/it-9)\ntest a ... ok\n";
    let (tally, _) = tally(text, false);
    assert_eq!(
        (tally.count, tally.failures),
        (
            Count {
                passed: 0,
                failed: 1
            },
            vec!["it: tests/it/main.rs: ended without a result".to_owned()]
        )
    );
}

#[test]
fn a_failure_without_a_word_is_a_failure() {
    assert_eq!(tally("", false).0.count.failed, 1);
    assert_eq!(tally("", true).0.count.failed, 0);
}
