//! End-to-end scenarios on a whole fleet with real nodes and pods, installed with Helm and exposed to faults. Each file
//! holds one scenario. They run in the order of the list below. Each expects a fleet that is in sync, and leaves it in
//! sync.
//!
//! `cargo xtask test e2e` runs all scenarios, `cargo test -p muster-e2e --test e2e NAME` runs one.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use muster_e2e::World;
use tokio::runtime::Runtime;

/// A scenario, which changes the fleet and checks the result.
type Scenario = for<'w> fn(&'w World) -> LocalBoxFuture<'w, anyhow::Result<()>>;

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        $(mod $name;)+
        const SCENARIOS: &[(&str, Scenario)] = &[
            $((stringify!($name), |world| Box::pin($name::run(world)))),+
        ];
    };
}

scenarios![
    install,
    commit_to_pods,
    charts_upgrade,
    drift_and_prune,
    crashing_image,
    processes_killed,
    node_paused,
    api_server_down,
    network_cut,
    bundle_bomb,
    etcd_full,
    certificates,
    clock_off,
    hub_restored,
    agent_updates_itself,
    uninstall,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The scenarios share one fleet and break it, so they can't run in parallel.
    arguments.test_threads = Some(1);
    let stage: &'static Stage = Box::leak(Box::default());
    let trials = SCENARIOS.iter().map(|(name, scenario)| {
        Trial::test(*name, move || {
            stage
                .play(name, *scenario)
                .map_err(|error| Failed::from(format!("{error:?}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    stage.close();
    conclusion.exit_code()
}

/// The fleet, which lives from the first scenario to the last.
#[derive(Default)]
struct Stage(Mutex<Option<anyhow::Result<(Runtime, World)>>>);

impl Stage {
    fn play(&self, name: &str, scenario: Scenario) -> anyhow::Result<()> {
        let mut set = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let set = set.get_or_insert_with(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            let world = runtime.block_on(World::start())?;
            if name != SCENARIOS[0].0 {
                runtime.block_on(SCENARIOS[0].1(&world))?;
            }
            Ok((runtime, world))
        });
        let (runtime, world) = match set {
            Ok(set) => set,
            Err(error) => anyhow::bail!("the fleet could not be started: {error:#}"),
        };
        let started = Instant::now();
        let result = runtime.block_on(scenario(world));
        eprintln!("{name} took {:.1?}", started.elapsed());
        result.map_err(|error| {
            let took = started.elapsed();
            // Also print the error immediately, because the next scenarios may take a while.
            eprintln!("{name} failed after {took:.0?}: {error:#}");
            error.context(format!(
                "the scenario {name} failed after {took:.0?}\n{}",
                world.dump()
            ))
        })
    }

    fn close(&self) {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
    }
}
