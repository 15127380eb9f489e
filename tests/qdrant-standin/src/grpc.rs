//! The gRPC side: the services `qdrant-client` ships server traits for.

mod collections;
mod convert;
mod points;
mod snapshots;

use std::sync::Arc;

use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::{Qdrant, QdrantServer};
use qdrant_client::qdrant::snapshots_server::SnapshotsServer;
use qdrant_client::qdrant::{HealthCheckReply, HealthCheckRequest};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::auth::{self, Access};
use crate::error::{Error, Result};
use crate::rest::{COMMIT, IMITATED_VERSION};
use crate::store::Store;

/// Snapshots of seeded collections go through in one upsert at most this large.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Serves until `stopped` resolves.
pub async fn serve(
    store: Arc<Store>,
    listener: tokio::net::TcpListener,
    stopped: impl Future<Output = ()>,
) -> std::result::Result<(), tonic::transport::Error> {
    let keys = Arc::clone(&store);
    let check = move |request: Request<()>| check_key(&keys, request);
    let api = Api { store };
    Server::builder()
        .layer(InterceptorLayer::new(check))
        .add_service(QdrantServer::new(api.clone()))
        .add_service(CollectionsServer::new(api.clone()))
        .add_service(PointsServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(SnapshotsServer::new(api))
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::TcpListenerStream::new(listener),
            stopped,
        )
        .await
}

/// One type implements all services.
#[derive(Debug, Clone)]
struct Api {
    store: Arc<Store>,
}

impl Api {
    /// Runs a blocking operation that only reads.
    async fn read<T, F>(&self, operation: F) -> std::result::Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> Result<T> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || operation(&store)).await {
            Ok(result) => Ok(Response::new(result?)),
            Err(e) => Err(Error::Internal(format!("task failed: {e}")).into()),
        }
    }

    /// Runs a blocking operation that needs the full key.
    async fn write<R, T, F>(
        &self,
        request: Request<R>,
        operation: F,
    ) -> std::result::Result<Response<T>, Status>
    where
        R: Send + 'static,
        T: Send + 'static,
        F: FnOnce(&Store, R) -> Result<T> + Send + 'static,
    {
        if let Some(access) = request.extensions().get::<Access>() {
            access.require_manage()?;
        }
        let message = request.into_inner();
        self.read(move |store| operation(store, message)).await
    }
}

#[tonic::async_trait]
impl Qdrant for Api {
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> std::result::Result<Response<HealthCheckReply>, Status> {
        Ok(Response::new(HealthCheckReply {
            title: "qdrant - vector search engine".into(),
            version: IMITATED_VERSION.into(),
            commit: Some(COMMIT.into()),
        }))
    }
}

fn check_key(store: &Store, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
    let metadata = request.metadata();
    let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    let access = auth::check(&store.options, text("api-key"), text("authorization"))
        .map_err(Status::unauthenticated)?;
    request.extensions_mut().insert(access);
    Ok(request)
}

/// Defines trait methods that answer "unimplemented", by name and types.
macro_rules! unimplemented_methods {
    ($($name:ident: $request:ident => $response:ident,)*) => {
        $(
            #[allow(clippy::type_complexity, clippy::type_repetition_in_bounds)]
            fn $name<'life0, 'async_trait>(
                &'life0 self,
                _: Request<qdrant_client::qdrant::$request>,
            ) -> std::pin::Pin<Box<dyn Future<Output = std::result::Result<
                Response<qdrant_client::qdrant::$response>, Status>> + Send + 'async_trait>>
            where
                'life0: 'async_trait,
                Self: 'async_trait,
            {
                Box::pin(async {
                    Err(Status::unimplemented(concat!(
                        stringify!($name),
                        " is not implemented by Lifeboat's test stand-in"
                    )))
                })
            }
        )*
    };
}
use unimplemented_methods;
