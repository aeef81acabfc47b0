use proptest::prelude::*;

use super::*;

const PAUSES: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(300),
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_failure_is_retried_with_back_off_and_hastened_no_sooner_than_after_a_second() {
    let start = Instant::now();
    let mut failing = Failing::again(None, start, PAUSES, 1.0);
    assert_eq!(failing.due(), start + seconds(1));
    for pause in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        failing = Failing::again(Some(failing), start, PAUSES, 1.0);
        assert_eq!(failing.due(), start + seconds(pause));
    }
    failing.hasten();
    assert_eq!(failing.due(), start + seconds(1));
    failing.soon(start);
    assert_eq!(failing.due(), start + AFTER_COMMIT);
    failing.soon(start + seconds(1));
    assert_eq!(failing.due(), start + AFTER_COMMIT);
    failing.now();
    assert_eq!(failing.due(), start);
}

#[test]
fn a_fight_is_corrected_at_once_three_times_and_then_with_pauses_that_double() {
    let mut now = Instant::now();
    let mut fight = Fight::undone(None, now, PAUSES);
    let mut waited = Vec::new();
    for _ in 0..14 {
        assert_eq!(Fight::undone(Some(fight), now, PAUSES), fight);
        waited.push(fight.due(PAUSES).duration_since(now).as_secs());
        now = fight.due(PAUSES);
        fight.corrected(now);
        fight = Fight::undone(Some(fight), now, PAUSES);
    }
    assert_eq!(
        waited,
        [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    );
    assert!(fight.is_serious());
}

#[test]
fn a_fight_is_over_when_nobody_undoes_it_for_long_enough() {
    let start = Instant::now();
    let mut fight = Fight::undone(None, start, PAUSES);
    fight.corrected(start);
    let again = Fight::undone(Some(fight), start + seconds(59), PAUSES);
    assert_eq!(again.times, 2);
    let later = Fight::undone(Some(fight), start + seconds(60), PAUSES);
    assert_eq!((later.times, later.since), (1, start + seconds(60)));
}

proptest! {
    #[test]
    fn pauses_never_shrink_and_never_pass_the_longest(times in 1..200_u32) {
        let start = Instant::now();
        let at = |times| Fight { times, since: start, corrected: start, undone: true };
        prop_assert!(at(times).due(PAUSES) <= at(times + 1).due(PAUSES));
        prop_assert!(at(times).due(PAUSES) <= start + PAUSES.longest);
        prop_assert!(at(times).calm_at(PAUSES) > at(times).due(PAUSES));
    }
}
