use super::*;

/// Connects and sends a request for this path.
async fn ask(port: u16, path: &str) -> TcpStream {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let line = format!("git-upload-pack {path}\0host=127.0.0.1\0");
    let line = format!("{:04x}{line}", line.len() + 4);
    client.write_all(line.as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn only_the_connection_that_knows_the_secret_is_served() {
    let bridge = Bridge::open().unwrap();
    let (port, secret) = (bridge.port, bridge.secret.clone());
    let accepting = tokio::spawn(async move { bridge.accept().await.unwrap().peer_addr() });
    for other in ["/", "/0123456789abcdef0123456789abcdef", ""] {
        let mut stranger = ask(port, other).await;
        assert_eq!(
            stranger.read(&mut [0]).await.unwrap_or_default(),
            0,
            "{other}"
        );
    }
    let ours = ask(port, &secret).await;
    assert_eq!(
        accepting.await.unwrap().unwrap(),
        ours.local_addr().unwrap()
    );
}

#[tokio::test]
async fn a_stranger_that_says_nothing_keeps_nobody_waiting() {
    let bridge = Bridge::open().unwrap();
    let (port, secret) = (bridge.port, bridge.secret.clone());
    let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let accepting = tokio::spawn(async move { bridge.accept().await.unwrap().peer_addr() });
    let ours = ask(port, &secret).await;
    assert_eq!(
        accepting.await.unwrap().unwrap(),
        ours.local_addr().unwrap()
    );
}
