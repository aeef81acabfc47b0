use std::io;

use super::*;

#[test]
fn only_the_hubs_own_words_are_called_so() {
    let refused = said(Status::failed_precondition("it has not reported yet"));
    assert_eq!(refused.to_string(), "the hub says: it has not reported yet");
    let broken = Status::from_error(io::Error::from(io::ErrorKind::ConnectionReset).into());
    assert_eq!(
        said(broken).to_string(),
        "the connection to the hub broke: connection reset"
    );
    let incomplete = said(Status::unknown("the final status is missing"));
    assert_eq!(
        incomplete.to_string(),
        "the connection to the hub broke: the final status is missing"
    );
}
