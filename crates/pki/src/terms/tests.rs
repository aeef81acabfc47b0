use super::*;

#[test]
fn only_hubs_of_the_fleet_prove_terms() {
    let ca = Ca::create(crate::clock::now()).unwrap();
    let key = Ca::from_pem(&ca.to_pem()).unwrap().term_key();
    let proof = ca.term_key().prove(7, 9, "store");
    assert!(key.holds(7, 9, "store", &proof));
    for (number, nonce, incarnation) in [(8, 9, "store"), (7, 8, "store"), (7, 9, "other")] {
        assert!(!key.holds(number, nonce, incarnation, &proof));
    }
    assert!(!key.holds(7, 9, "store", &[]));
    let other = Ca::create(crate::clock::now()).unwrap();
    assert!(!other.term_key().holds(7, 9, "store", &proof));
}

#[test]
fn only_hubs_of_the_fleet_write_fleet_records() {
    let ca = Ca::create(crate::clock::now()).unwrap();
    let key = ca.term_key();
    let proof = key.prove_record(b"{}");
    assert!(key.holds_record(b"{}", &proof));
    assert!(!key.holds_record(b"{ }", &proof));
    assert!(!key.holds_record(b"{}", &[]));
    let other = Ca::create(crate::clock::now()).unwrap();
    assert!(!other.term_key().holds_record(b"{}", &proof));
    // No proof of a term is one of a record.
    assert!(!key.holds_record(b"", &key.prove(7, 9, "store")));
}
