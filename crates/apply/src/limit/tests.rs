use futures::future::{join_all, poll_immediate};
use proptest::prelude::*;

use super::*;

/// A server that takes `latency` seconds for a request and answers at most `capacity` requests a
/// second. If `refuses` is set, the server refuses requests while the limit is above that number.
#[derive(Debug, Clone, Copy)]
struct Server {
    latency: f64,
    capacity: f64,
    refuses: Option<usize>,
}

/// Feeds a pace with this number of answers of the server. Requests are always waiting to be sent.
fn run(pace: &mut Pace, server: Server, answers: usize) {
    let (start, mut seconds) = (Instant::now(), 0.0);
    for _ in 0..answers {
        let rate = (pace.limit as f64 / server.latency).min(server.capacity);
        seconds += 1.0 / rate;
        if server.refuses.is_some_and(|most| pace.limit > most) {
            pace.refused(pace.halvings);
        } else {
            pace.answered(start + Duration::from_secs_f64(seconds), true);
        }
    }
}

#[test]
fn the_limit_grows_only_while_the_server_answers_more() {
    let server = |capacity| Server {
        latency: 0.02,
        capacity,
        refuses: None,
    };
    let at = |capacity| {
        let mut pace = Pace::new(128);
        run(&mut pace, server(capacity), 4_000);
        pace.limit
    };
    assert_eq!(at(1e9), 128);
    // With a limit of 64, this server is already at its capacity.
    assert_eq!(at(600.0), 64);
    // With a limit of 96, the server gives 4,800 answers a second; a higher limit gains too little.
    assert_eq!(at(5_000.0), 96);
}

#[test]
fn a_refusal_halves_once_and_recovery_is_by_one() {
    let mut pace = Pace::new(64);
    let left = pace.halvings;
    for _ in 0..16 {
        pace.refused(left);
    }
    assert_eq!(pace.limit, 32);
    pace.refused(pace.halvings);
    assert_eq!(pace.limit, 16);
    let start = Instant::now();
    for answer in 0..16 * ANSWERS {
        pace.answered(start + Duration::from_millis(answer as u64), true);
    }
    assert_eq!(pace.limit, 17);
}

#[test]
fn requests_that_did_not_wait_say_nothing_about_the_limit() {
    let mut pace = Pace::new(64);
    let start = Instant::now();
    for answer in 0..10_000 {
        pace.answered(start + Duration::from_millis(answer), false);
    }
    assert_eq!(pace.limit, FIRST);
}

#[test]
fn it_finds_out_that_the_server_has_become_faster() {
    let mut pace = Pace::new(128);
    let slow = Server {
        latency: 0.02,
        capacity: 600.0,
        refuses: None,
    };
    run(&mut pace, slow, 4_000);
    let fast = Server {
        capacity: 1e9,
        ..slow
    };
    run(&mut pace, fast, 20_000);
    assert_eq!(pace.limit, 128);
}

proptest! {
    #[test]
    fn it_is_never_below_one_nor_above_the_most(
        most in 0_usize..200,
        signs in prop::collection::vec((0_u8..10, 0_u64..50, any::<bool>()), 0..2_000),
    ) {
        let mut pace = Pace::new(most);
        let mut now = Instant::now();
        let mut left = pace.halvings;
        for (sign, milliseconds, other) in signs {
            now += Duration::from_millis(milliseconds);
            match (sign, other) {
                (0, true) => pace.refused(left),
                (0, false) => left = pace.halvings,
                _ => pace.answered(now, other),
            }
            prop_assert!((1..=most.max(1)).contains(&pace.limit));
        }
    }

    #[test]
    fn the_limit_stays_near_what_the_server_accepts(most in 1_usize..60) {
        let mut pace = Pace::new(64);
        let server = Server { latency: 0.02, capacity: 1e9, refuses: Some(most) };
        run(&mut pace, server, 20_000);
        // A try raises the limit by half; the server refuses that immediately.
        prop_assert!(pace.limit >= most / 2 && pace.limit <= most * 3 / 2 + 1, "{pace:?}");
        let halvings = pace.halvings;
        run(&mut pace, server, 10_000);
        prop_assert!(pace.halvings - halvings < 300, "{pace:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_for_all_and_ends() {
    let limiter = Limiter::new(2);
    let began = Instant::now();
    let turn = limiter.turn().await;
    turn.end(Sign::TooMany(Some(Duration::from_secs(7))));
    join_all((0..10).map(|_| async {
        limiter.turn().await.end(Sign::Answered);
    }))
    .await;
    assert_eq!(began.elapsed().as_secs(), 7);
    // A `Retry-After` of a day is shortened to `LONGEST_PAUSE`.
    let turn = limiter.turn().await;
    turn.end(Sign::TooMany(Some(Duration::from_secs(86_400))));
    limiter.turn().await.end(Sign::Answered);
    assert_eq!(began.elapsed().as_secs(), 67);
}

#[tokio::test]
async fn turns_are_as_many_as_the_limit_and_come_back() {
    let limiter = Limiter::new(3);
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(limiter.turn().await);
    }
    let mut fourth = std::pin::pin!(limiter.turn());
    assert!(poll_immediate(&mut fourth).await.is_none());
    // A request that is given up returns its turn, too.
    drop(turns.pop());
    drop(fourth.await);
    turns.remove(0).end(Sign::None);
    assert_eq!(limiter.state().under_way, 1);
}
