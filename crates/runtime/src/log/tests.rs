use super::*;

#[test]
fn a_chain_is_one_line() {
    let source = "x".parse::<EnvFilter>().map(drop);
    assert!(source.is_ok());
    let source = EnvFilter::builder().parse("a=b=c").unwrap_err();
    let why = source.to_string();
    let error = LogError::Filter {
        value: "a=b=c".to_owned(),
        source,
    };
    let line = Chain(&error).to_string();
    assert!(
        line.starts_with("MUSTER_LOG=\"a=b=c\" can't be understood"),
        "{line}"
    );
    assert!(
        line.contains(&format!(": {why}")) && !line.contains('\n'),
        "{line}"
    );
}

#[test]
fn formats_have_names() {
    assert_eq!("json".parse(), Ok(LogFormat::Json));
    assert_eq!("text".parse(), Ok(LogFormat::Text));
    let error = "xml".parse::<LogFormat>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"xml\" is not a log format: use text or json"
    );
}
