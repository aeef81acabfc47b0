//! Tests of documents and reports that are made from a hub's status.

use muster_model::{problem::Problem, yaml::Pos};
use muster_proto::v1;

use super::{
    document::{Document, Filter, State},
    live::{Lost, frame},
    report::{render, summary},
    terminal::{Terminal, length, names},
    unknown,
    wait::Freshness,
};

/// An arbitrary time.
const NOW: i64 = 1_790_000_000;
const COMMIT: &str = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";
const TIP: &str = "9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c";

fn app(name: &str, role: &str, objects: u32) -> v1::ClusterApp {
    v1::ClusterApp {
        app: name.to_owned(),
        role: role.to_owned(),
        synced: true,
        phase: v1::Phase::Applied.into(),
        health: "Healthy".to_owned(),
        objects,
        applied: objects,
        ..v1::ClusterApp::default()
    }
}

fn cluster(name: &str, region: &str, apps: Vec<v1::ClusterApp>) -> v1::ClusterStatus {
    v1::ClusterStatus {
        name: name.to_owned(),
        region: region.to_owned(),
        state: v1::ClusterState::Synced.into(),
        connected: true,
        last_seen: NOW - 40,
        agent_version: "0.1.0".to_owned(),
        wanted: 12,
        in_force: 12,
        commit: COMMIT.to_owned(),
        apps,
        problems: vec![],
    }
}

fn summary_of(name: &str, tier: &str, mode: &str) -> v1::AppSummary {
    v1::AppSummary {
        name: name.to_owned(),
        tier: tier.to_owned(),
        mode: mode.to_owned(),
        owner: "team-a".to_owned(),
        held: false,
        writer: (mode == "active-passive").then(|| v1::Writer {
            region: "eu-west".to_owned(),
            cluster: "eu-west-1".to_owned(),
            epoch: 7,
            at: NOW - 86_400,
            by: "commit 0a1b2c3d".to_owned(),
            why: "first placement".to_owned(),
            r#move: None,
            targets: vec!["us-east".to_owned()],
        }),
    }
}

fn region(name: &str, country: &str, city: &str) -> v1::RegionSummary {
    v1::RegionSummary {
        name: name.to_owned(),
        continent: "EU".to_owned(),
        country: country.to_owned(),
        city: city.to_owned(),
    }
}

/// Three regions, four clusters, three apps, all in sync.
fn fleet() -> v1::Status {
    let apps = |payments: &str| {
        vec![
            app("metrics", "active", 22),
            app("payments", payments, 18),
            app("storefront", "active", 14),
        ]
    };
    v1::Status {
        epoch: 7,
        fleet: "harbour".to_owned(),
        hub_version: "0.1.0".to_owned(),
        repo: Some(v1::Repo {
            url: "https://git.example.com/harbour/fleet.git".to_owned(),
            reference: "branch main".to_owned(),
            commit: COMMIT.to_owned(),
            subject: "Raise the replicas of the storefront".to_owned(),
            author: "Ada Lovelace".to_owned(),
            committed_at: NOW - 200,
            tip: COMMIT.to_owned(),
            processed: COMMIT.to_owned(),
            last_read: NOW - 3,
            ..v1::Repo::default()
        }),
        problems: vec![],
        clusters: vec![
            cluster("eu-north-1", "eu-north", apps("standby")),
            cluster("eu-west-1", "eu-west", apps("primary")),
            cluster("eu-west-2", "eu-west", vec![app("metrics", "active", 22)]),
            cluster("us-east-1", "us-east", apps("standby")),
        ],
        apps: vec![
            summary_of("metrics", "bronze", "active-active"),
            summary_of("payments", "gold", "active-passive"),
            summary_of("storefront", "silver", "active-active"),
        ],
        regions: vec![
            region("eu-north", "SE", "Stockholm"),
            region("eu-west", "IE", "Dublin"),
            region("us-east", "US", "Ashburn"),
        ],
        now: NOW,
    }
}

/// A large fleet, in which some clusters have problems.
fn large(clusters: u32) -> v1::Status {
    let mut status = fleet();
    let regions = ["eu-north", "eu-west", "us-east"];
    status.clusters = (0..clusters)
        .map(|n| {
            let region = regions[n as usize % 3];
            let apps = vec![app("metrics", "active", 22), app("payments", "active", 18)];
            let mut cluster = cluster(&format!("{region}-{n:03}"), region, apps);
            match n {
                n if n % 7 == 3 => fail(&mut cluster),
                n if n % 25 == 5 => offline(&mut cluster, 60 * i64::from(n)),
                298 => {
                    cluster.state = v1::ClusterState::Unjoined.into();
                    cluster.commit.clear();
                    cluster.agent_version.clear();
                    cluster.in_force = 0;
                }
                299 => progress(&mut cluster),
                _ => {}
            }
            cluster
        })
        .collect();
    status.apps.truncate(2);
    status
}

fn fail(cluster: &mut v1::ClusterStatus) {
    cluster.state = v1::ClusterState::Failing.into();
    let app = &mut cluster.apps[1];
    app.health = "Degraded".to_owned();
    app.phase = v1::Phase::Failed.into();
    app.applied -= 1;
    app.problems = vec![
        v1::ObjectProblem {
            object: "Deployment.apps payments/api".to_owned(),
            message: "container api: ImagePullBackOff: Back-off pulling image \"registry.example.com/payments/api:2.14.1\"".to_owned(),
        },
        v1::ObjectProblem {
            object: "Service payments/api".to_owned(),
            message: "spec.ports[0].port: Invalid value: 0:\n\tmust be between 1 and 65535".to_owned(),
        },
    ];
}

fn offline(cluster: &mut v1::ClusterStatus, for_seconds: i64) {
    cluster.state = v1::ClusterState::Offline.into();
    cluster.connected = false;
    cluster.last_seen = NOW - for_seconds;
}

fn progress(cluster: &mut v1::ClusterStatus) {
    cluster.state = v1::ClusterState::Progressing.into();
    cluster.commit.clear();
    cluster.wanted += 1;
    let app = &mut cluster.apps[0];
    app.phase = v1::Phase::Received.into();
    app.health = "Progressing".to_owned();
    app.applied = 15;
}

/// A fleet where objects are pending approval in all four clusters, and the storefront has drifted.
fn waiting() -> v1::Status {
    let mut status = fleet();
    let hold = |set: u8, count: u32| v1::Hold {
        set: vec![set; 32],
        reason: format!("{count} of 18 objects would be deleted, and the budget is 10"),
        objects: (0..count.min(50))
            .map(|n| format!("ConfigMap payments/shard-{n}"))
            .collect(),
        count,
        recreate: false,
    };
    for (index, count) in [(0, 12), (1, 12), (3, 60)] {
        status.clusters[index].state = v1::ClusterState::Failing.into();
        status.clusters[index].apps[1].holds = vec![hold(index as u8, count)];
    }
    // An app that has left the repository.
    status.clusters[2].state = v1::ClusterState::Failing.into();
    let mut gone = app("legacy", "", 0);
    gone.synced = false;
    gone.phase = v1::Phase::Received.into();
    gone.health = "Progressing".to_owned();
    gone.holds = vec![hold(9, 1)];
    status.clusters[2].apps.push(gone);
    // An object that must be recreated.
    status.clusters[2].apps[0].phase = v1::Phase::Received.into();
    status.clusters[2].apps[0].holds = vec![v1::Hold {
        set: vec![7; 32],
        reason: "spec.engine can't be changed; recreating it would lose the data in it".to_owned(),
        objects: vec!["Database.example.org billing/main".to_owned()],
        count: 1,
        recreate: true,
    }];
    let drifted = &mut status.clusters[1].apps[2];
    drifted.drifted = 1;
    drifted.applied = 13;
    drifted.problems = vec![v1::ObjectProblem {
        object: "Deployment.apps storefront/web".to_owned(),
        message: "/spec/replicas: 7, not 4".to_owned(),
    }];
    let drift = |at: i64, corrected| v1::DriftEvent {
        at,
        object: "Deployment.apps storefront/web".to_owned(),
        difference: "/spec/replicas: 7, not 4".to_owned(),
        corrected,
        recreated: false,
    };
    drifted.drifts = vec![drift(NOW - 4000, true), drift(NOW - 90, false)];
    status
}

fn broken_commit(status: &mut v1::Status) {
    let repo = status.repo.as_mut().unwrap();
    repo.tip = TIP.to_owned();
    repo.processed = TIP.to_owned();
    status.problems = vec![v1::RepoProblem {
        scope: "fleet".to_owned(),
        app: String::new(),
        file: "regions/eu-west/region.yaml".to_owned(),
        line: 6,
        column: 3,
        message: "unknown field `capacitty`".to_owned(),
        source: "  capacitty: { clusters: 2 }".to_owned(),
        help: "did you mean `capacity`?".to_owned(),
    }];
}

fn whole(status: v1::Status) -> Document {
    Document::of(status, &Filter::default())
}

fn terminal(width: impl Into<Option<usize>>, styled: bool) -> Terminal {
    Terminal {
        styled,
        width: width.into(),
        now: jiff::Timestamp::from_second(NOW).ok(),
    }
}

/// Returns the report as a terminal of this width shows it, without colours.
fn on_terminal(document: &Document, width: usize) -> String {
    let page = render(document, terminal(width, true));
    let page = anstream::adapter::strip_str(&page).to_string();
    for line in page.lines().filter(|line| !line.contains(" | ")) {
        let columns = textwrap::core::display_width(line);
        assert!(columns <= width, "{columns} columns: {line}");
    }
    page
}

#[test]
fn all_synced() {
    let document = whole(fleet());
    assert!(document.synced);
    insta::assert_snapshot!("all_synced_80", on_terminal(&document, 80));
    insta::assert_snapshot!("all_synced_140", on_terminal(&document, 140));
    insta::assert_snapshot!("all_synced_40", on_terminal(&document, 40));
    insta::assert_snapshot!("all_synced_plain", render(&document, terminal(None, false)));
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 4 of 4 clusters in sync");
}

#[test]
fn styles_are_for_terminals() {
    let document = whole(fleet());
    assert!(render(&document, terminal(80, true)).contains("\x1b["));
    assert!(render(&document, terminal(80, false)).is_ascii());
}

/// The picture in the README shows the report of the current code.
#[test]
fn the_picture_is_what_a_terminal_shows() -> anyhow::Result<()> {
    let mut status = fleet();
    fail(&mut status.clusters[0]);
    status.clusters[0].apps[1].problems.truncate(1);
    offline(&mut status.clusters[2], 300);
    progress(&mut status.clusters[3]);
    let report = render(&whole(status), terminal(100, true));
    let picture = anstyle_svg::Term::new().render_svg(&report);
    muster_testkit::documents::is("status.svg", &picture)
}

#[test]
fn the_repository_is_unreachable() {
    let mut status = fleet();
    let repo = status.repo.as_mut().unwrap();
    repo.problem =
        "the host git.example.com can't be resolved; check the name and this machine's network"
            .to_owned();
    repo.problem_since = NOW - 320;
    repo.retry_at = NOW + 20;
    let document = whole(status);
    assert!(!document.synced);
    insta::assert_snapshot!("unreachable_80", on_terminal(&document, 80));
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: the repository is unreachable; 4 of 4 clusters in sync");
}

#[test]
fn a_commit_is_blocked() {
    let mut status = fleet();
    broken_commit(&mut status);
    let document = whole(status);
    assert!(!document.synced);
    insta::assert_snapshot!("held_80", on_terminal(&document, 80));
    insta::assert_snapshot!("held_plain", render(&document, terminal(None, false)));
    // The newest commit is not in force. It may also be in progress, so waiting continues.
    assert!(!document.waits_for_a_commit());
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 9f8e7d6c is blocked; 4 of 4 clusters in sync");
}

#[test]
fn a_commit_after_a_blocked_one_is_in_progress() {
    let mut status = fleet();
    broken_commit(&mut status);
    status.repo.as_mut().unwrap().tip = "0123456789abcdef0123456789abcdef01234567".to_owned();
    let document = whole(status.clone());
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 01234567 is in progress; 4 of 4 clusters in sync");
    let page = render(&document, terminal(None, false));
    let (first, _) = page.split_once("\n\n").unwrap();
    insta::assert_snapshot!(first, @r"
    note: commit 01234567 is in progress; 1a2b3c4d stays in force
        the problems below are those of 9f8e7d6c, which was blocked
    ");
    // The newest commit is the one in force again. Its own problems are not known yet.
    status.repo.as_mut().unwrap().tip = COMMIT.to_owned();
    assert!(!whole(status.clone()).waits_for_a_commit());
    // An older hub does not report which commit the problems belong to.
    let repo = status.repo.as_mut().unwrap();
    repo.tip = TIP.to_owned();
    repo.processed = String::new();
    insta::assert_snapshot!(summary(&whole(status)), @"1a2b3c4d: 9f8e7d6c is blocked; 4 of 4 clusters in sync");
}

#[test]
fn an_app_is_blocked_and_a_hint_is_no_error() {
    let mut status = fleet();
    status.apps[1].held = true;
    let at = Pos { line: 3, col: 14 };
    let text = "a\nb\nreplicas: {{ values.replicsa }}\n";
    let problem = Problem::new(
        muster_model::problem::Scope::App("payments".parse().unwrap()),
        "apps/payments/templates/api.yaml",
        "`values.replicsa` is not defined",
    );
    let hint = Problem::new(
        muster_model::problem::Scope::Hint,
        "apps/metrics/app.yaml",
        "the owner has no contact in fleet.yaml",
    );
    let problem = problem.at(text, at).help("did you mean `replicas`?");
    status.problems = vec![(&problem).into(), (&hint).into()];
    let document = whole(status.clone());
    assert!(!document.synced);
    insta::assert_snapshot!("held_app_80", on_terminal(&document, 80));
    // Everything else is in sync, so only another commit can unblock the app.
    assert!(document.waits_for_a_commit());
    let mut on_its_way = status.clone();
    progress(&mut on_its_way.clusters[3]);
    assert!(!whole(on_its_way).waits_for_a_commit());
    status.problems.remove(0);
    assert!(whole(status).synced);
}

#[test]
fn a_failing_app_an_offline_cluster_and_one_on_its_way() {
    let mut status = fleet();
    fail(&mut status.clusters[0]);
    fail(&mut status.clusters[1]);
    status.clusters[1].apps[1].problems.remove(1);
    offline(&mut status.clusters[2], 300);
    progress(&mut status.clusters[3]);
    status.clusters[1].problems = vec!["two agents take turns as cluster eu-west-1".to_owned()];
    let document = whole(status);
    assert!(!document.synced);
    insta::assert_snapshot!("trouble_80", on_terminal(&document, 80));
    insta::assert_snapshot!("trouble_140", on_terminal(&document, 140));
    insta::assert_snapshot!("trouble_plain", render(&document, terminal(None, false)));
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 0 of 4 clusters in sync; eu-north-1, eu-west-1 failing; eu-west-2 offline; us-east-1 progressing");
}

#[test]
fn what_waits_for_a_person() {
    let mut status = waiting();
    // The hub omits drift events unless apps are selected by name.
    status.clusters[1].apps[2].drifts.clear();
    let document = whole(status);
    assert!(!document.synced);
    insta::assert_snapshot!("waiting_80", on_terminal(&document, 80));
    insta::assert_snapshot!("waiting_plain", render(&document, terminal(None, false)));
    assert!(render(&document, terminal(80, false)).is_ascii());
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: objects of legacy, metrics, payments pending approval; 0 of 4 clusters in sync; eu-north-1, eu-west-1 and 2 more pending");
    let filter = Filter {
        apps: vec!["storefront".to_owned()],
        ..Filter::default()
    };
    let narrowed = Document::of(waiting(), &filter);
    insta::assert_snapshot!("waiting_app_80", on_terminal(&narrowed, 80));
    insta::assert_snapshot!("waiting_app_140", on_terminal(&narrowed, 140));
    let placed = &document.clusters[1].apps;
    let placed: Vec<_> = placed
        .iter()
        .map(|placed| super::value(placed).unwrap())
        .collect();
    insta::assert_snapshot!(
        "waiting_json",
        format!("{:#}", serde_json::Value::from(placed))
    );
}

#[test]
fn a_writer_that_moves_is_shown_with_what_it_waits_for() {
    let mut status = fleet();
    let app = status.apps.iter_mut().find(|app| app.name == "payments");
    let writer = app.unwrap().writer.as_mut().unwrap();
    writer.at = NOW - 90;
    writer.r#move = Some(v1::Move {
        step: "fencing".to_owned(),
        region: "us-east".to_owned(),
        cluster: "us-east-1".to_owned(),
        waits: "eu-west-1 has not proven that the writer has stopped: `when` is false".to_owned(),
        unproven: false,
        promoted: false,
    });
    let document = whole(status.clone());
    assert!(!document.synced);
    let shown = on_terminal(&document, 100);
    insta::assert_snapshot!(shown.split("\n\n").next().unwrap_or_default(), @r"
    ↻ payments moves from eu-west-1 to us-east-1, fencing (for 90 s): eu-west-1 has not proven that the
      writer has stopped: `when` is false
    ");
    assert!(summary(&document).contains("payments moving"));
    // An app that was not asked for does not count.
    let filter = Filter {
        apps: vec!["metrics".to_owned()],
        ..Filter::default()
    };
    assert!(Document::of(status, &filter).synced);
}

#[test]
fn a_fleet_of_three_hundred_clusters_is_summed_up() {
    let document = whole(large(300));
    insta::assert_snapshot!("large_80", on_terminal(&document, 80));
    insta::assert_snapshot!("large_140", on_terminal(&document, 140));
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 245 of 300 clusters in sync; eu-north-003, eu-west-010 and 41 more failing; us-east-005, eu-north-030 and 8 more offline; eu-west-298 unjoined; us-east-299 progressing");
}

#[test]
fn a_page_of_two_thousand_clusters_is_no_longer_than_one_of_three_hundred() {
    let lines = |clusters| on_terminal(&whole(large(clusters)), 80).lines().count();
    assert!(lines(2000) <= lines(300) + 2, "{}", lines(2000));
}

#[test]
fn before_the_first_commit() {
    let status = v1::Status {
        repo: Some(v1::Repo {
            url: "/srv/fleet.git".to_owned(),
            reference: "the default branch".to_owned(),
            ..v1::Repo::default()
        }),
        now: NOW,
        ..v1::Status::default()
    };
    let document = whole(status);
    assert!(!document.synced);
    insta::assert_snapshot!(on_terminal(&document, 80), @r"
    unnamed fleet: no commit is in force yet
      /srv/fleet.git, the default branch
      0 clusters in sync, 0 apps, 0 objects
    ");
}

#[test]
fn what_others_wrote_moves_no_cursor() {
    let mut status = fleet();
    let repo = status.repo.as_mut().unwrap();
    repo.subject = "Clear\x1b[2J\x07 the\r screen".to_owned();
    repo.problem = "\x1b]0;title\x07".to_owned();
    fail(&mut status.clusters[0]);
    status.clusters[0].apps[1].problems[0].message = "\x1b[31mred".to_owned();
    broken_commit(&mut status);
    status.problems[0].source = "\x1b[1A".to_owned();
    let page = render(&whole(status), terminal(80, false));
    let odd: Vec<char> = page
        .chars()
        .filter(|c| c.is_control() && *c != '\n')
        .collect();
    assert_eq!(odd, Vec::<char>::new());
}

#[test]
fn a_document_for_scripts() {
    let mut status = fleet();
    fail(&mut status.clusters[1]);
    offline(&mut status.clusters[3], 300);
    broken_commit(&mut status);
    let filter = Filter {
        clusters: vec!["eu-west-1".to_owned(), "us-east-1".to_owned()],
        apps: vec!["payments".to_owned()],
        ..Filter::default()
    };
    insta::assert_json_snapshot!("document", Document::of(status, &filter));
}

#[test]
fn only_what_is_asked_for_counts() {
    let mut status = fleet();
    fail(&mut status.clusters[1]);
    progress(&mut status.clusters[3]);
    let of = |regions: &[&str], apps: &[&str]| {
        let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let filter = Filter {
            regions: text(regions),
            clusters: vec![],
            apps: text(apps),
        };
        let document = Document::of(status.clone(), &filter);
        let states: Vec<(String, State)> = document
            .clusters
            .into_iter()
            .map(|cluster| (cluster.name, cluster.state))
            .collect();
        (document.synced, states)
    };
    let states = |all: &[(&str, State)]| {
        all.iter()
            .map(|(name, state)| ((*name).to_owned(), *state))
            .collect::<Vec<_>>()
    };
    use State::{Failing, Progressing, Synced};
    assert_eq!(
        of(&["eu-north"], &[]),
        (true, states(&[("eu-north-1", Synced)]))
    );
    assert_eq!(
        of(&["eu-west"], &[]),
        (
            false,
            states(&[("eu-west-1", Failing), ("eu-west-2", Synced)])
        )
    );
    assert_eq!(
        of(&[], &["storefront"]),
        (
            true,
            states(&[
                ("eu-north-1", Synced),
                ("eu-west-1", Synced),
                ("us-east-1", Synced)
            ])
        )
    );
    assert_eq!(
        of(&["us-east"], &["metrics"]),
        (false, states(&[("us-east-1", Progressing)]))
    );
}

#[test]
fn an_unknown_name_is_an_error_with_a_suggestion() {
    let status = fleet();
    let filter = |regions: &str, clusters: &str, apps: &str| {
        let some = |name: &str| {
            let names = (!name.is_empty()).then(|| name.to_owned());
            names.into_iter().collect()
        };
        Filter {
            regions: some(regions),
            clusters: some(clusters),
            apps: some(apps),
        }
    };
    let told = |regions, clusters, apps| unknown(&status, &filter(regions, clusters, apps));
    assert_eq!(told("eu-west", "eu-west-1", "metrics"), None);
    assert_eq!(
        told("eu-wst", "", "").as_deref(),
        Some("there is no region `eu-wst`; did you mean `eu-west`?")
    );
    assert_eq!(
        told("", "us-east-2", "").as_deref(),
        Some("there is no cluster `us-east-2`; did you mean `us-east-1`?")
    );
    assert_eq!(
        told("", "", "wiki").as_deref(),
        Some("there is no app `wiki`; use one of: metrics, payments, storefront")
    );
}

#[test]
fn a_frame_keeps_to_its_screen() {
    let document = whole(large(300));
    let lost = Lost {
        seconds: 5,
        why: "the connection broke",
    };
    for height in [10, 24, 200] {
        let frame = frame(
            &document,
            terminal(80, false),
            "muster status",
            Some(&lost),
            height,
        );
        assert!(frame.lines().count() < height, "{height}");
    }
    let short = frame(
        &whole(fleet()),
        terminal(80, false),
        "muster status",
        Some(&lost),
        9,
    );
    insta::assert_snapshot!(short, @r"
    muster status
    ✗ the hub has been unreachable for 5 s (the connection broke); retrying every
      second. Its last status:

    harbour at 1a2b3c4d Raise the replicas of the storefront
      by Ada Lovelace, 3 min ago
      https://git.example.com/harbour/fleet.git, branch main
    … 12 more lines
    ");
}

#[test]
fn only_a_reading_that_began_later_is_fresh() {
    let mut freshness = Freshness::since(100);
    // A read that ended before the start, or in the same second.
    assert!(!freshness.saw(99));
    assert!(!freshness.saw(100));
    // This read may have begun before the start.
    assert!(!freshness.saw(101));
    assert!(!freshness.saw(101));
    assert!(freshness.saw(102));
    assert!(freshness.saw(102));
}

#[test]
fn lengths_and_names_are_short() {
    let lengths = [-5, 0, 119, 120, 7_199, 7_200, 172_800].map(length);
    assert_eq!(
        lengths,
        ["0 s", "0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]
    );
    assert_eq!(names(["a", "b", "c"], 2), "a, b, c");
    assert_eq!(names(["a", "b", "c", "d"], 2), "a, b and 2 more");
}

#[test]
fn a_problem_of_the_hub_blocks_no_commit() {
    let mut status = fleet();
    let problem = Problem::of_hub(
        "this hub's state was restored from a backup; nothing is deleted without approval until that is confirmed",
        "see that the fleet is as it should be, then `muster hub confirm`",
    );
    status.problems = vec![(&problem).into()];
    let document = whole(status.clone());
    assert!(!document.synced);
    assert!(document.waits_for_a_person() && !document.waits_for_a_commit());
    let page = render(&document, terminal(None, false));
    assert!(
        page.starts_with("error: this hub's state was restored"),
        "{page}"
    );
    // A newer commit is not blocked by it.
    status.repo.as_mut().unwrap().tip = "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432".to_owned();
    let document = whole(status);
    assert!(!document.waits_for_a_person());
    insta::assert_snapshot!(summary(&document), @"1a2b3c4d: 9f8e7d6c is in progress; 4 of 4 clusters in sync");
}
