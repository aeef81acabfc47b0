use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

#[test]
fn names_with_brackets_and_spaces_do_not_disturb() {
    let stat = "7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 12345 1 1 1";
    assert_eq!(
        Stat::parse(stat),
        Some(Stat {
            cpu_ticks: 200.0,
            started_after_boot: 12345.0
        })
    );
    assert_eq!(Stat::parse("7 (a) S 1"), None);
}

#[test]
fn this_process_started_a_moment_ago() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let started = Stat::read().unwrap().started().unwrap();
    assert!(
        started <= now + 2.0 && started > now - 3600.0,
        "{started} {now}"
    );
    assert!(resident_bytes().unwrap() > 100_000.0);
    assert!(open_files().unwrap() >= 3.0);
}
