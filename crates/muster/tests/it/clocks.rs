//! Clocks that disagree and certificates that expire: agents still join, renew and stay in sync, and they reconnect by
//! themselves after their certificate has expired.

use std::time::Duration;

use anyhow::ensure;
use muster_testkit::wait::eventually;

use crate::rolling::{Beside, Rolling};

const LONG: Duration = Duration::from_secs(60);
const RENEWED: &str = "the agent has a new certificate";

/// Returns how often the agent has renewed its certificate, by its log.
fn renewals(agent: &Beside) -> anyhow::Result<usize> {
    let log = std::fs::read_to_string(agent.process.log())?;
    Ok(log.matches(RENEWED).count())
}

/// Runs hub and agent with these clock offsets until certificates with a lifetime of ten seconds are renewed twice.
async fn disagree(hub: &str, agent: &str) -> anyhow::Result<()> {
    let mut rolling = Rolling::prepare().await?;
    rolling.fleet.set_hub("MUSTER_CLOCK_OFFSET", hub);
    rolling.fleet.set_hub("MUSTER_AGENT_LIFETIME", "10s");
    rolling.fleet.start_hub().await?;
    let agent = rolling.beside("agent", &[&format!("--clock-offset={agent}")])?;
    rolling.until_applied(1).await?;
    eventually("two renewals", LONG, async || {
        agent.process.check()?;
        let now = renewals(&agent)?;
        ensure!(now >= 2, "{now} renewals: {}", agent.process.tail());
        Ok(())
    })
    .await?;
    ensure!(
        renewals(&agent)? <= 3,
        "renewed too often: {}",
        agent.process.tail()
    );
    rolling.commit(2).await?;
    rolling.fleet.run(&["status", "--wait"])?;
    let log = std::fs::read_to_string(agent.process.log())?;
    ensure!(
        log.contains("MUSTER_CLOCK_OFFSET shifts this process's clock"),
        "{log}"
    );
    ensure!(
        !log.contains("asks for a new certificate"),
        "a certificate expired before it was renewed: {log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_clock_is_a_minute_behind_its_hubs_joins_and_renews() -> anyhow::Result<()> {
    disagree("+30s", "-30s").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_clock_is_a_minute_ahead_of_its_hubs_joins_and_renews() -> anyhow::Result<()>
{
    disagree("-30s", "+30s").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_away_past_its_certificates_end_comes_back_by_itself()
-> anyhow::Result<()> {
    let mut rolling = Rolling::start().await?;
    rolling.fleet.stop_agent("one")?;
    rolling.fleet.stop_hub()?;
    // Two days later. A certificate is valid for one day.
    let later = (2 * 24 * 60 * 60).to_string();
    rolling.fleet.set_hub("MUSTER_CLOCK_OFFSET", &later);
    rolling.fleet.start_hub().await?;
    let agent = rolling.beside("agent", &["--clock-offset", &later])?;
    agent.until("200", "agent: ok").await?;
    rolling.commit(2).await?;
    ensure!(renewals(&agent)? == 1, "{}", agent.process.tail());

    // The same again, with an agent whose clock is a minute behind the hub's.
    ensure!(agent.process.stop(LONG)?.success());
    rolling.fleet.stop_hub()?;
    let later = (4 * 24 * 60 * 60).to_string();
    rolling.fleet.set_hub("MUSTER_CLOCK_OFFSET", &later);
    rolling.fleet.start_hub().await?;
    let behind = (4 * 24 * 60 * 60 - 60).to_string();
    let agent = rolling.beside("again", &["--clock-offset", &behind])?;
    rolling.commit(3).await?;
    ensure!(renewals(&agent)? == 1, "{}", agent.process.tail());
    Ok(())
}
