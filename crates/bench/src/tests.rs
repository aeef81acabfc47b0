use super::*;

#[test]
fn a_number_of_rounds_is_refused_where_it_has_no_effect() -> anyhow::Result<()> {
    let rounds = |arguments: &[&str]| {
        let program = std::iter::once(&"bench");
        Cli::try_parse_from(program.chain(arguments))?.rounds()
    };
    assert_eq!(rounds(&["render"])?, 5);
    assert_eq!(rounds(&["render", "--repeat", "2"])?, 2);
    assert_eq!(rounds(&["--repeat", "2"])?, 2);
    assert_eq!(rounds(&["commit"])?, 5);
    assert!(rounds(&["commit", "--repeat", "2"]).is_err());
    assert!(rounds(&["build", "--repeat", "5"]).is_err());
    Ok(())
}
