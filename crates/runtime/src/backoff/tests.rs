use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_ceiling_doubles_up_to_the_cap_and_starts_again() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut backoff = Backoff::new(ms(100), ms(1000));
    let mut ceilings = |backoff: &mut Backoff, count| -> Vec<_> {
        let ceiling = |_| {
            backoff.draw(&mut rng);
            backoff.ceiling
        };
        (0..count).map(ceiling).collect()
    };
    let wanted = [200, 400, 800, 1000, 1000].map(ms);
    assert_eq!(ceilings(&mut backoff, 5), wanted);
    backoff.reset();
    assert_eq!(ceilings(&mut backoff, 2), wanted[..2]);
}

#[test]
fn delays_are_spread() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut backoff = Backoff::new(ms(0), ms(1000));
    backoff.ceiling = ms(1000);
    let sum: Duration = (0..1000).map(|_| backoff.draw(&mut rng)).sum();
    assert!((ms(450)..ms(550)).contains(&(sum / 1000)), "{sum:?}");
}

proptest! {
    #[test]
    fn delays_stay_in_bounds(base in 0..5000_u64, cap in 0..5000_u64, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut backoff = Backoff::new(ms(base), ms(cap));
        for _ in 0..200 {
            let delay = backoff.draw(&mut rng);
            prop_assert!(delay >= ms(base) && delay <= ms(cap.max(base)));
        }
    }
}
