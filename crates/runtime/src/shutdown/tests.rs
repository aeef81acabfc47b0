use super::*;

#[tokio::test]
async fn waits_for_tasks_that_end() {
    let shutdown = Shutdown::new();
    let task = shutdown.spawn({
        let shutdown = shutdown.clone();
        async move {
            shutdown.begun().await;
            7
        }
    });
    assert!(!shutdown.has_begun());
    assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
    assert_eq!(task.await.unwrap(), 7);
}

#[tokio::test]
async fn a_vital_task_takes_the_process_with_it() {
    let shutdown = Shutdown::new();
    shutdown.spawn_vital("good", {
        let shutdown = shutdown.clone();
        async move { shutdown.begun().await }
    });
    shutdown.spawn_vital("bad", async { panic!("as a mistake would") });
    shutdown.begun().await;
    assert_eq!(shutdown.ended(), Some("bad"));
    assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
    // A vital task that ends after the shutdown has begun is not reported.
    let shutdown = Shutdown::new();
    shutdown.spawn_vital("good", {
        let shutdown = shutdown.clone();
        async move { shutdown.begun().await }
    });
    assert_eq!(shutdown.finish(Duration::from_secs(60)).await, Ok(()));
    assert_eq!(shutdown.ended(), None);
}

#[tokio::test]
async fn counts_tasks_that_do_not_end() {
    let shutdown = Shutdown::new();
    for _ in 0..2 {
        shutdown.spawn(std::future::pending::<()>());
    }
    let after = Duration::from_millis(10);
    assert_eq!(
        shutdown.finish(after).await,
        Err(Unfinished { tasks: 2, after })
    );
}
