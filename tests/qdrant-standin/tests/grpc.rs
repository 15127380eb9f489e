//! The gRPC side, through the client that Lifeboat uses.

mod common;

use common::{KEY, READ_KEY, Server, start};
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateAliasBuilder, CreateCollectionBuilder,
    CreateFieldIndexCollectionBuilder, DeletePointsBuilder, DeleteSnapshotRequestBuilder, Distance,
    FieldType, Filter, GetPointsBuilder, PointId, PointStruct, QueryPointsBuilder,
    ScrollPointsBuilder, SearchPointsBuilder, SetPayloadPointsBuilder, UpsertPointsBuilder,
    VectorParamsBuilder,
};
use qdrant_client::{Payload, Qdrant, QdrantError};
use reqwest::Method;
use serde_json::json;
use tonic::Code;

fn client(server: &Server, key: &str) -> Qdrant {
    Qdrant::from_url(&server.handle.grpc_url)
        .api_key(key)
        .skip_compatibility_check()
        .build()
        .expect("client")
}

async fn seed(client: &Qdrant) {
    let vectors = VectorParamsBuilder::new(2, Distance::Euclid);
    let create = CreateCollectionBuilder::new("kb")
        .vectors_config(vectors)
        .shard_number(2);
    client.create_collection(create).await.expect("create");
    let points: Vec<PointStruct> = (0..30_u64)
        .map(|id| {
            let payload = json!({"n": id, "even": id % 2 == 0, "tags": ["a", 1.5, null]});
            let payload = Payload::try_from(payload).expect("payload");
            PointStruct::new(id, vec![id as f32, 1.0], payload)
        })
        .collect();
    let upsert = UpsertPointsBuilder::new("kb", points).wait(true);
    client.upsert_points(upsert).await.expect("upsert");
    let index = CreateFieldIndexCollectionBuilder::new("kb", "n", FieldType::Integer);
    client.create_field_index(index).await.expect("index");
    client
        .create_alias(CreateAliasBuilder::new("kb", "alias"))
        .await
        .expect("alias");
}

#[tokio::test]
async fn client_seeds_reads_and_snapshots() {
    let server = start().await;
    let client = client(&server, KEY);
    let health = client.health_check().await.expect("health");
    assert!(
        health
            .commit
            .is_some_and(|commit| commit.contains("stand-in"))
    );
    seed(&client).await;

    let info = client
        .collection_info("alias")
        .await
        .expect("info")
        .result
        .expect("info");
    assert_eq!(info.points_count, Some(30));
    assert_eq!(info.payload_schema["n"].points, Some(30));
    let params = info.config.expect("config").params.expect("params");
    assert_eq!(params.shard_number, 2);
    let aliases = client.list_aliases().await.expect("aliases").aliases;
    assert_eq!(aliases[0].alias_name, "alias");
    assert_eq!(
        client
            .list_collections()
            .await
            .expect("list")
            .collections
            .len(),
        1
    );

    let payload = Payload::try_from(json!({"note": "x"})).expect("payload");
    let set = SetPayloadPointsBuilder::new("kb", payload).points_selector(vec![PointId::from(1)]);
    client.set_payload(set).await.expect("set payload");
    let odd = Filter::must([Condition::matches("even", false)]);
    let delete = DeletePointsBuilder::new("kb").points(Filter::must([Condition::matches("n", 29)]));
    client.delete_points(delete).await.expect("delete");
    let count = CountPointsBuilder::new("kb").filter(odd).exact(true);
    let count = client
        .count(count)
        .await
        .expect("count")
        .result
        .expect("count");
    assert_eq!(count.count, 14);

    let get = GetPointsBuilder::new("kb", vec![1.into()])
        .with_payload(true)
        .with_vectors(true);
    let got = client.get_points(get).await.expect("get").result;
    assert_eq!(
        got[0].payload["note"].as_str().map(String::as_str),
        Some("x")
    );
    assert!(got[0].vectors.is_some());
    let page = ScrollPointsBuilder::new("kb").limit(10);
    let page = client.scroll(page).await.expect("scroll");
    assert_eq!(
        (page.result.len(), page.next_page_offset),
        (10, Some(10.into()))
    );
    let search = SearchPointsBuilder::new("kb", vec![7.2, 1.0], 2);
    let hits = client.search_points(search).await.expect("search").result;
    assert_eq!(hits[0].id, Some(7.into()));
    let query = QueryPointsBuilder::new("kb")
        .query(vec![7.9_f32, 1.0])
        .limit(1);
    let hits = client.query(query).await.expect("query").result;
    assert_eq!(hits[0].id, Some(8.into()));

    let made = client.create_snapshot("kb").await.expect("snapshot");
    let made = made.snapshot_description.expect("description");
    let listed = client
        .list_snapshots("kb")
        .await
        .expect("list")
        .snapshot_descriptions;
    assert_eq!(listed, std::slice::from_ref(&made));
    assert_eq!(made.checksum.as_deref().map(str::len), Some(64));
    assert!(made.creation_time.is_some());
    client
        .delete_snapshot(DeleteSnapshotRequestBuilder::new("kb", &made.name))
        .await
        .expect("delete");
    let left = server
        .ok(Method::GET, "/collections/kb/snapshots", None)
        .await;
    assert_eq!(left, json!([]));
    client.delete_collection("kb").await.expect("delete");
    assert!(
        client
            .list_aliases()
            .await
            .expect("aliases")
            .aliases
            .is_empty()
    );
}

#[tokio::test]
async fn keys_and_gaps_have_the_codes_clients_expect() {
    let server = start().await;
    seed(&client(&server, KEY)).await;
    let reader = client(&server, READ_KEY);
    assert!(reader.list_snapshots("kb").await.is_ok());
    assert_eq!(
        code(reader.create_snapshot("kb").await),
        Code::PermissionDenied
    );
    let stranger = client(&server, "wrong");
    assert_eq!(
        code(stranger.list_collections().await),
        Code::Unauthenticated
    );
    let writer = client(&server, KEY);
    assert_eq!(code(writer.create_snapshot("nope").await), Code::NotFound);
    assert_eq!(
        code(writer.create_full_snapshot().await),
        Code::Unimplemented
    );
}

fn code<T>(result: Result<T, QdrantError>) -> Code {
    match result {
        Err(QdrantError::ResponseError { status }) => status.code(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => Code::Ok,
    }
}
