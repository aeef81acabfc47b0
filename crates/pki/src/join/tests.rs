use super::*;
use crate::Ca;

fn token() -> JoinToken {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    JoinToken {
        hub: "hub.example.org:7443".to_owned(),
        trust: Ca::create(now).unwrap().trust().unwrap(),
        cluster: "eu-west-1".parse().unwrap(),
        secret: JoinSecret::generate(),
        expires: now,
    }
}

#[test]
fn survives_a_copy_with_line_breaks() {
    let token = token();
    let text = token.expose();
    assert!(text.starts_with("muster-join.v1."));
    assert_eq!(text.parse::<JoinToken>().unwrap(), token);
    let (a, b) = text.split_at(100);
    assert_eq!(
        format!(" {a}\r\n  {b}\n").parse::<JoinToken>().unwrap(),
        token
    );
}

#[test]
fn a_token_that_is_cut_short_is_distinguished_from_other_text() {
    let text = token().expose();
    for length in FAMILY.len()..text.len() {
        let error = text[..length].parse::<JoinToken>().unwrap_err();
        assert!(
            matches!(error, JoinTokenError::Damaged),
            "{length}: {error:?}"
        );
    }
    for other in ["", "muster", "eyJhbGciOiJIUzI1NiJ9", &text[1..]] {
        let error = other.parse::<JoinToken>().unwrap_err();
        assert!(
            matches!(error, JoinTokenError::NotAToken),
            "{other}: {error:?}"
        );
    }
    let newer = text
        .replacen("v1", "v2", 1)
        .parse::<JoinToken>()
        .unwrap_err();
    assert!(matches!(newer, JoinTokenError::Newer), "{newer:?}");
}

#[test]
fn logs_do_not_show_the_secret() {
    let token = token();
    let debug = format!("{token:?}");
    assert!(debug.contains("JoinSecret(..)") && !debug.contains(&token.secret.expose()));
}

#[test]
fn the_hub_compares_hashes() {
    let secret = JoinSecret::generate();
    assert_ne!(secret.hash(), JoinSecret::generate().hash());
    assert_eq!(
        secret.expose().parse::<JoinSecret>().unwrap().hash(),
        secret.hash()
    );
    assert_eq!(
        JoinSecret([0; 32]).hash(),
        "2ada83c1819a5372dae1238fc1ded123c8104fdaa15862aaee69428a1820fcda"
    );
}
