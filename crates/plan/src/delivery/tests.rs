use proptest::prelude::*;

use super::*;

fn term(number: u64, nonce: u64) -> Term {
    let proof = Proof::default();
    Term {
        number,
        nonce,
        proof,
    }
}

fn numbered(generation: u64, content: &[u8]) -> Numbered {
    Numbered {
        generation: Generation(generation),
        content: ContentHash::of(content),
    }
}

#[test]
fn an_agent_never_goes_back() {
    let now = Some(numbered(5, b"a"));
    assert_eq!(
        accept_generation(now, numbered(5, b"a")),
        Ok(Acceptance::Same)
    );
    assert_eq!(
        accept_generation(now, numbered(6, b"b")),
        Ok(Acceptance::New)
    );
    assert_eq!(
        accept_generation(now, numbered(5, b"b")),
        Err(Refusal::OtherContent(Generation(5)))
    );
    assert!(accept_generation(now, numbered(4, b"a")).is_err());
    assert_eq!(
        accept_generation(None, numbered(1, b"a")),
        Ok(Acceptance::New)
    );
}

#[test]
fn two_copies_of_one_store_do_not_both_lead() {
    let agent = Known {
        term: term(3, 7),
        incarnation: "store".into(),
        in_force: None,
        ..Known::default()
    };
    let meet = |number, nonce, incarnation| meet(term(number, nonce), incarnation, &agent, true);
    assert_eq!(meet(3, 7, "store"), Meeting::Lead);
    assert_eq!(meet(4, 1, "store"), Meeting::Lead);
    assert_eq!(meet(3, 8, "store"), Meeting::StepDown);
    assert_eq!(meet(3, 8, "restored"), Meeting::Retake { above: 3 });
    assert_eq!(meet(2, 8, "store"), Meeting::Retake { above: 3 });
    assert!(accept_term(&agent, term(3, 8)).is_err());
    assert!(accept_term(&agent, term(2, 7)).is_err());
    assert_eq!(accept_term(&agent, term(4, 0)), Ok(()));
}

#[test]
fn a_term_that_nobody_proves_changes_nothing() {
    for (number, nonce, met) in [
        (4, 0, Meeting::Unproven),
        (u64::MAX, 0, Meeting::Unproven),
        (3, 8, Meeting::Unproven),
        (3, 7, Meeting::Lead),
        (2, 8, Meeting::Lead),
    ] {
        let agent = Known {
            term: term(number, nonce),
            ..Known::default()
        };
        assert_eq!(meet(term(3, 7), "", &agent, false), met, "{number}/{nonce}");
    }
}

proptest! {
    #[test]
    fn what_a_hub_offers_is_never_refused(stored in 0..9_u64, a in 0..2_u8, now in 0..9_u64, b in 0..2_u8) {
        let (stored, now) = (numbered(stored, &[a]), numbered(now, &[b]));
        let offered = number_for(stored, Some(now));
        prop_assert_eq!(offered.content, stored.content);
        prop_assert!(accept_generation(Some(now), offered).is_ok());
    }

    #[test]
    fn after_a_retake_the_agent_accepts_the_term(own in 0..5_u64, number in 0..5_u64, nonce in 0..2_u64) {
        let agent = Known { term: term(number, nonce), incarnation: "x".into(), ..Known::default() };
        let own = term(own, 0);
        let term = match meet(own, "y", &agent, true) {
            Meeting::Retake { above } => term(above + 1, 0),
            Meeting::Lead | Meeting::StepDown | Meeting::Unproven => own,
        };
        prop_assert_eq!(accept_term(&agent, term), Ok(()));
    }
}

fn sealed(epoch: u64, writers: &str) -> SealedRecord {
    let content = format!(r#"{{"epoch":{epoch},"writers":{writers}}}"#);
    SealedRecord {
        epoch: Epoch(epoch),
        content,
        proof: [0; 32],
    }
}

#[test]
fn an_agent_takes_no_older_epoch_and_keeps_its_record() {
    let mut known = Known {
        record: Some(sealed(5, "{}")),
        ..Known::default()
    };
    let accept = |sent, epoch| accept_record(&known, sent, Epoch(epoch));
    assert_eq!(accept(None, 5), Ok(known.record.clone()));
    assert_eq!(accept(Some(sealed(6, "{}")), 6), Ok(Some(sealed(6, "{}"))));
    let old = Refusal::OldEpoch {
        offered: Epoch(4),
        known: Epoch(5),
    };
    assert_eq!(accept(Some(sealed(4, "{}")), 4), Err(old));
    assert_eq!(accept(None, 6), Err(Refusal::NoRecord(Epoch(6))));
    assert_eq!(
        accept(Some(sealed(7, "{}")), 6),
        Err(Refusal::NoRecord(Epoch(6)))
    );
    assert_eq!(accept_record(&Known::default(), None, Epoch(1)), Ok(None));
    // A record of an earlier enrolment binds nobody.
    known.is_record_foreign = true;
    let sent = Some(sealed(4, "{}"));
    assert_eq!(accept_record(&known, sent.clone(), Epoch(4)), Ok(sent));
}

#[test]
fn a_hub_asks_for_a_record_that_is_newer_or_other_than_its_own() {
    let own = sealed(5, "{}").id();
    let meet = |epoch, writers| meet_record(own, Some(sealed(epoch, writers).id()), false);
    assert_eq!(meet(5, "{}"), RecordMeeting::Same);
    assert_eq!(meet(4, "{}"), RecordMeeting::Older);
    assert_eq!(meet(6, "{}"), RecordMeeting::Ask);
    assert_eq!(meet(5, "{ }"), RecordMeeting::Ask);
    assert_eq!(meet_record(own, None, false), RecordMeeting::Older);
    let older = Some(sealed(4, "{}").id());
    assert_eq!(meet_record(own, older, true), RecordMeeting::Ask);
    assert_eq!(meet_record(own, None, true), RecordMeeting::Older);
}
