use super::*;

#[test]
fn all_that_is_missing_is_named_with_what_to_do() {
    let ghost = Program {
        name: "no-such-program",
        version_flag: "--version",
        purpose: "haunts",
        install: "apt-get install ghost",
    };
    let shell = Program {
        name: "true",
        ..ghost
    };
    assert_eq!(
        check(&[ghost, shell]).unwrap_err().to_string(),
        "these programs are needed but don't work here:\n  \
             no-such-program haunts; to install it: apt-get install ghost"
    );
    assert!(check(&[shell]).is_ok());
}
