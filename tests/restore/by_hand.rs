//! Without the Docker API: a person stops and starts the services.

use std::fs;
use std::sync::Arc;

use lifeboat::restore::apply::{Event, Options, Progress};

use crate::world::{Place, World, restored};

/// The same stack, known from the environment only.
fn without_engine() -> Place {
    let mut place = Place::new(World::default());
    place.stack.without_engine = Some("there is no Docker API".to_owned());
    place.stack.companions.clear();
    for service in &mut place.stack.services {
        service.container = None;
    }
    place
}

#[tokio::test]
async fn without_the_docker_api_a_running_service_is_refused() {
    let mut place = without_engine();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    place.stack.services[2].hosts = vec!["127.0.0.1".to_owned()];
    place.stack.services[2].ports = vec![port];
    fs::write(place.root("postgres").join("postmaster.pid"), "1").unwrap();
    let before = place.data();
    let text = place.restore_all().await.unwrap_err().to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("postmaster.pid"), "{text}");
    assert_eq!(place.data(), before);
    place.assert_nothing_to_undo();
}

#[tokio::test]
async fn without_the_docker_api_a_person_starts_the_services() {
    let place = without_engine();
    fs::write(place.root("postgres").join("postmaster.pid"), "1").unwrap();
    place.world.running.lock().unwrap().clear();
    let options = Options {
        services_are_stopped: true,
        wait_for_start: false,
        ..Options::default()
    };
    place
        .world
        .running
        .lock()
        .unwrap()
        .insert("qdrant".to_owned());
    let report = place
        .restore(&place.plan(&[]), &place.site(options))
        .await
        .unwrap();
    assert_eq!(report.to_start, ["postgres", "n8n"]);
    assert_eq!(report.unsettled, ["postgres", "n8n"]);
    assert!(report.downtime_seconds.is_none());
    assert_eq!(report.kept.len(), 2);
    assert!(
        report
            .kept
            .iter()
            .all(|kept| kept.join("made since").exists())
    );
    // Nothing is left in the journal that could take the data away under what a person starts.
    place.assert_nothing_to_undo();
    assert!(place.root("postgres").join("prepared").exists());
}

#[tokio::test]
async fn without_the_docker_api_the_old_data_goes_once_the_services_have_settled() {
    let place = without_engine();
    place.world.running.lock().unwrap().remove("postgres");
    place.world.running.lock().unwrap().remove("n8n");
    let world = Arc::clone(&place.world);
    let mut site = place.site(Options::default());
    site.progress = Progress::new(move |event| {
        if let Event::StartByHand(names) = event {
            world.running.lock().unwrap().extend(names.iter().cloned());
        }
    });
    let report = place.restore(&place.plan(&[]), &site).await.unwrap();
    assert_eq!(report.to_start, ["postgres", "n8n"]);
    assert!(report.unsettled.is_empty() && report.kept.is_empty());
    assert_eq!(place.data(), restored(&place));
    place.assert_nothing_to_undo();
}
