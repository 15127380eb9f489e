//! Collection snapshots. Full-storage ones are not imitated.

use std::time::Instant;

use jiff::Timestamp;
use qdrant_client::qdrant::snapshots_server::Snapshots;
use qdrant_client::qdrant::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, SnapshotDescription,
};
use tonic::{Request, Response, Status};

use super::{Api, unimplemented_methods};
use crate::snapshots::Description;

#[tonic::async_trait]
impl Snapshots for Api {
    async fn create(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let made = store.create_snapshot(&request.collection_name)?;
            Ok(CreateSnapshotResponse {
                snapshot_description: Some(describe(made)),
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let started = Instant::now();
        let collection = request.into_inner().collection_name;
        self.read(move |store| {
            let found = store.list_snapshots(&collection)?;
            Ok(ListSnapshotsResponse {
                snapshot_descriptions: found.into_iter().map(describe).collect(),
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            store.delete_snapshot(&request.collection_name, &request.snapshot_name)?;
            Ok(DeleteSnapshotResponse {
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    unimplemented_methods! {
        create_full: CreateFullSnapshotRequest => CreateSnapshotResponse,
        list_full: ListFullSnapshotsRequest => ListSnapshotsResponse,
        delete_full: DeleteFullSnapshotRequest => DeleteSnapshotResponse,
    }
}

fn describe(snapshot: Description) -> SnapshotDescription {
    let time = snapshot.creation_time.as_deref();
    let time = time.and_then(|time| format!("{time}Z").parse::<Timestamp>().ok());
    let creation_time = time.map(|time| prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: 0,
    });
    SnapshotDescription {
        name: snapshot.name,
        creation_time,
        size: i64::try_from(snapshot.size).unwrap_or(i64::MAX),
        checksum: snapshot.checksum,
    }
}
