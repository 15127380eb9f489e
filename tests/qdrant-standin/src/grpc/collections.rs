//! Collections and aliases.

use std::time::Instant;

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::collections_server::Collections;
use qdrant_client::qdrant::{
    AliasDescription, ChangeAliases, CollectionDescription, CollectionExists,
    CollectionExistsRequest, CollectionExistsResponse, CollectionOperationResponse,
    CreateCollection, DeleteCollection, GetCollectionInfoRequest, GetCollectionInfoResponse,
    ListAliasesRequest, ListAliasesResponse, ListCollectionAliasesRequest, ListCollectionsRequest,
    ListCollectionsResponse,
};
use tonic::{Request, Response, Status};

use super::{Api, convert, unimplemented_methods};
use crate::error::Error;
use crate::store::AliasAction;

#[tonic::async_trait]
impl Collections for Api {
    async fn get(
        &self,
        request: Request<GetCollectionInfoRequest>,
    ) -> Result<Response<GetCollectionInfoResponse>, Status> {
        let started = Instant::now();
        let name = request.into_inner().collection_name;
        self.read(move |store| {
            Ok(GetCollectionInfoResponse {
                result: Some(convert::info(&store.info(&name)?)),
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    async fn list(
        &self,
        _: Request<ListCollectionsRequest>,
    ) -> Result<Response<ListCollectionsResponse>, Status> {
        let started = Instant::now();
        self.read(move |store| {
            let names = store.names().into_iter();
            Ok(ListCollectionsResponse {
                collections: names.map(|name| CollectionDescription { name }).collect(),
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    async fn create(
        &self,
        request: Request<CreateCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let body = convert::create_request(&request)?;
            store.create(&request.collection_name, &body)?;
            Ok(done(true, started))
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let deleted = store.delete(&request.collection_name)?;
            Ok(done(deleted, started))
        })
        .await
    }

    async fn update_aliases(
        &self,
        request: Request<ChangeAliases>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let actions = request.actions.into_iter().map(|operation| {
                Ok(match operation.action {
                    Some(Action::CreateAlias(create)) => AliasAction::Create {
                        collection: create.collection_name,
                        alias: create.alias_name,
                    },
                    Some(Action::RenameAlias(rename)) => AliasAction::Rename {
                        old: rename.old_alias_name,
                        new: rename.new_alias_name,
                    },
                    Some(Action::DeleteAlias(delete)) => AliasAction::Delete {
                        alias: delete.alias_name,
                    },
                    None => return Err(Error::BadRequest("Malformed AliasOperation".into())),
                })
            });
            let actions: Result<Vec<AliasAction>, Error> = actions.collect();
            store.update_aliases(actions?)?;
            Ok(done(true, started))
        })
        .await
    }

    async fn list_collection_aliases(
        &self,
        request: Request<ListCollectionAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let started = Instant::now();
        let name = request.into_inner().collection_name;
        self.read(move |store| {
            let name = store.real_name(&name)?;
            Ok(aliases(store.aliases(Some(&name)), started))
        })
        .await
    }

    async fn list_aliases(
        &self,
        _: Request<ListAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let started = Instant::now();
        self.read(move |store| Ok(aliases(store.aliases(None), started)))
            .await
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Result<Response<CollectionExistsResponse>, Status> {
        let started = Instant::now();
        let name = request.into_inner().collection_name;
        self.read(move |store| {
            let exists = store.get(&name).is_ok();
            Ok(CollectionExistsResponse {
                result: Some(CollectionExists { exists }),
                time: started.elapsed().as_secs_f64(),
            })
        })
        .await
    }

    unimplemented_methods! {
        update: UpdateCollection => CollectionOperationResponse,
        collection_cluster_info: CollectionClusterInfoRequest => CollectionClusterInfoResponse,
        update_collection_cluster_setup: UpdateCollectionClusterSetupRequest
            => UpdateCollectionClusterSetupResponse,
        create_shard_key: CreateShardKeyRequest => CreateShardKeyResponse,
        delete_shard_key: DeleteShardKeyRequest => DeleteShardKeyResponse,
        list_shard_keys: ListShardKeysRequest => ListShardKeysResponse,
    }
}

fn done(result: bool, started: Instant) -> CollectionOperationResponse {
    CollectionOperationResponse {
        result,
        time: started.elapsed().as_secs_f64(),
    }
}

fn aliases(pairs: Vec<(String, String)>, started: Instant) -> ListAliasesResponse {
    let description = |(alias_name, collection_name)| AliasDescription {
        alias_name,
        collection_name,
    };
    ListAliasesResponse {
        aliases: pairs.into_iter().map(description).collect(),
        time: started.elapsed().as_secs_f64(),
    }
}
