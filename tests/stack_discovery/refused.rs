//! An engine that refuses, hangs or is not there is a sentence with what to do.

use super::*;

#[tokio::test]
async fn a_socket_that_may_not_be_opened_is_named() {
    let project = Project::up(STACK);
    let seen = inside(&project.container("lifeboat"), "65534", "tells_the_stack");
    let sentence = seen["error"].as_str().unwrap();
    assert!(sentence.contains("permission denied"), "{sentence}");
    assert!(sentence.contains("group_add"), "{sentence}");
}

#[tokio::test]
async fn a_socket_proxy_that_refuses_is_told_what_to_allow() {
    let project = Project::up(ONE);
    let one = project.container("one");
    let proxy = Proxy::refusing(&["POST", "/images/"]).await;
    let engine = Engine::connect(&proxy.host(), Limits::default())
        .await
        .unwrap();
    // Reading is all a backup needs.
    let config = config(&[("LIFEBOAT_PROJECT", &project.name)]);
    discover::discover(&config, Some(&engine)).await.unwrap();
    for (outcome, permission) in [
        (
            engine.stop(&one, Duration::from_secs(1)).await,
            "ALLOW_STOP=1",
        ),
        (engine.start(&one).await, "ALLOW_START=1"),
        (engine.pause(&one).await, "POST=1"),
        (
            engine.exec(&one, Exec::new(["true"])).await.map(|_| ()),
            "EXEC=1",
        ),
    ] {
        let err = outcome.unwrap_err();
        assert_eq!(err.kind, EngineErrorKind::Denied);
        assert!(err.to_string().contains(permission), "{err}");
        assert!(err.to_string().contains(&one), "{err}");
    }

    let proxy = Proxy::refusing(&["/containers/"]).await;
    let engine = Engine::connect(&proxy.host(), Limits::default())
        .await
        .unwrap();
    let err = engine.project_containers("x").await.unwrap_err();
    assert!(err.to_string().contains("CONTAINERS=1"), "{err}");

    let proxy = Proxy::refusing(&["/version"]).await;
    let err = Engine::connect(&proxy.host(), Limits::default())
        .await
        .unwrap_err();
    assert!(err.to_string().contains("VERSION=1"), "{err}");
}

#[tokio::test]
async fn a_socket_proxy_that_hangs_is_told_what_to_allow() {
    // Fails with a hint when there is no engine behind the proxy.
    connect().await;
    let proxy = Proxy::hanging(&["/containers/"]).await;
    let engine = Engine::connect(&proxy.host(), limits(Duration::from_secs(2)))
        .await
        .unwrap();
    let err = engine.inspect("x").await.unwrap_err();
    assert_eq!(err.kind, EngineErrorKind::Timeout);
    assert!(err.is_transient());
    assert!(err.to_string().contains("CONTAINERS=1"), "{err}");
    assert!(err.to_string().contains("within 2 seconds"), "{err}");
}

#[tokio::test]
async fn everything_passes_through_a_proxy_that_allows_it() {
    let project = Project::up(ONE);
    let one = project.container("one");
    let proxy = Proxy::refusing(&[]).await;
    let engine = Engine::connect(&proxy.host(), Limits::default())
        .await
        .unwrap();
    let output = engine
        .exec(&one, Exec::new(["echo", "here"]))
        .await
        .unwrap();
    assert_eq!(output.stdout, b"here\n");
    engine.stop(&one, Duration::from_secs(20)).await.unwrap();
    engine.start(&one).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_is_not_there_or_too_old_or_none_is_told() {
    let kind_and_text = |host: String| async move {
        let err = Engine::connect(&host, limits(Duration::from_secs(5)))
            .await
            .unwrap_err();
        (err.kind, err.to_string())
    };
    let (kind, text) = kind_and_text("unix:///nowhere/docker.sock".into()).await;
    assert_eq!(kind, EngineErrorKind::NoSocket);
    assert!(text.contains("/nowhere/docker.sock"), "{text}");

    let (kind, text) = kind_and_text("tcp://127.0.0.1:1".into()).await;
    assert_eq!(kind, EngineErrorKind::Unreachable);
    assert!(
        text.contains("127.0.0.1:1") && text.contains("refused"),
        "{text}"
    );

    let old =
        Proxy::answering(r#"{"Version":"19.03.15","ApiVersion":"1.40","MinAPIVersion":"1.12"}"#);
    let (kind, text) = kind_and_text(old.await.host()).await;
    assert_eq!(kind, EngineErrorKind::Setup);
    assert!(text.contains("1.40") && text.contains("20.10"), "{text}");

    for answer in ["<html>hello</html>", "{"] {
        let other = Proxy::answering(answer).await;
        let (kind, text) = kind_and_text(other.host()).await;
        assert_eq!(kind, EngineErrorKind::Failed);
        assert!(text.contains("not the Docker API's"), "{text}");
    }
    let none = config(&[("DOCKER_HOST", "none")]);
    assert!(Engine::from_config(&none).await.unwrap().is_none());
    let named = config(&[("DOCKER_HOST", "unix:///nowhere/docker.sock")]);
    Engine::from_config(&named).await.unwrap_err();
    let stack = discover::discover(&none, None).await.unwrap();
    assert!(
        stack
            .without_engine
            .unwrap()
            .contains("DOCKER_HOST is none")
    );
}
