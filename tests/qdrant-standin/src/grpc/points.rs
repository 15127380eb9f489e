//! Points.

use std::time::Instant;

use qdrant_client::qdrant::points_server::Points;
use qdrant_client::qdrant::query::Variant;
use qdrant_client::qdrant::vector_input;
use qdrant_client::qdrant::{
    ClearPayloadPoints, CountPoints, CountResponse, CountResult, CreateFieldIndexCollection,
    DeleteFieldIndexCollection, DeletePayloadPoints, DeletePoints, GetPoints, GetResponse,
    PointsOperationResponse, QueryPoints, QueryResponse, RetrievedPoint, ScoredPoint, ScrollPoints,
    ScrollResponse, SearchPoints, SearchResponse, SetPayloadPoints, UpdatePointVectors,
    UpdateResult, UpdateStatus, UpsertPoints,
};
use tonic::{Request, Response, Status};

use super::{Api, convert, unimplemented_methods};
use crate::error::Error;
use crate::model::Point;
use crate::points::{Parts, Search, Selection};

#[tonic::async_trait]
impl Points for Api {
    async fn upsert(
        &self,
        request: Request<UpsertPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let points = convert::new_points(request.points)?;
            let op = store.upsert(&request.collection_name, points)?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeletePoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let selection = convert::selection(request.points)?;
            let op = store.delete_points(&request.collection_name, &selection)?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn get(&self, request: Request<GetPoints>) -> Result<Response<GetResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        self.read(move |store| {
            let ids = convert::point_ids(request.ids)?;
            let points = store.retrieve(&request.collection_name, &ids)?;
            let payload = convert::payload_parts(request.with_payload);
            let vectors = convert::vector_parts(request.with_vectors);
            let record = |point: &Point| retrieved(point, &payload, &vectors);
            Ok(GetResponse {
                result: points.iter().map(record).collect(),
                time: started.elapsed().as_secs_f64(),
                usage: None,
            })
        })
        .await
    }

    async fn update_vectors(
        &self,
        request: Request<UpdatePointVectors>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let mut updates = Vec::new();
            for point in request.points {
                let vectors = convert::vectors(point.vectors)?;
                updates.push((convert::point_id(point.id)?, vectors));
            }
            let ids = updates.iter().map(|(id, _)| *id).collect();
            let selection = Selection::Ids(ids);
            let op = store.edit_points(&request.collection_name, &selection, &|point| {
                for (_, vectors) in updates.iter().filter(|(id, _)| *id == point.id) {
                    point.vectors.extend(vectors.clone());
                }
                Ok(())
            })?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn set_payload(
        &self,
        request: Request<SetPayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        self.edit_payload(request, false).await
    }

    async fn overwrite_payload(
        &self,
        request: Request<SetPayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        self.edit_payload(request, true).await
    }

    async fn delete_payload(
        &self,
        request: Request<DeletePayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let selection = convert::selection(request.points_selector)?;
            let op = store.edit_points(&request.collection_name, &selection, &|point| {
                point.payload.retain(|key, _| !request.keys.contains(key));
                Ok(())
            })?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn clear_payload(
        &self,
        request: Request<ClearPayloadPoints>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let selection = convert::selection(request.points)?;
            let op = store.edit_points(&request.collection_name, &selection, &|point| {
                point.payload.clear();
                Ok(())
            })?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let schema = convert::field_type(request.field_type)?;
            let name = request.collection_name;
            let op = store.create_index(&name, request.field_name, schema)?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn delete_field_index(
        &self,
        request: Request<DeleteFieldIndexCollection>,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let op = store.drop_index(&request.collection_name, request.field_name)?;
            Ok(completed(op, started))
        })
        .await
    }

    async fn search(
        &self,
        request: Request<SearchPoints>,
    ) -> Result<Response<SearchResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        self.read(move |store| {
            let search = Search {
                vector: request.vector,
                using: request.vector_name.unwrap_or_default(),
                filter: convert::filter(request.filter)?,
                limit: size(Some(request.limit), 10),
                offset: size(request.offset, 0),
                threshold: request.score_threshold,
            };
            let hits = store.search(&request.collection_name, &search)?;
            let payload = convert::payload_parts(request.with_payload);
            let vectors = convert::vector_parts(request.with_vectors);
            let result = hits.iter().map(|hit| scored(hit, &payload, &vectors));
            Ok(SearchResponse {
                result: result.collect(),
                time: started.elapsed().as_secs_f64(),
                usage: None,
            })
        })
        .await
    }

    async fn query(
        &self,
        request: Request<QueryPoints>,
    ) -> Result<Response<QueryResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        self.read(move |store| {
            let nearest = match request.query.and_then(|query| query.variant) {
                Some(Variant::Nearest(nearest)) => nearest.variant,
                _ => None,
            };
            let Some(vector_input::Variant::Dense(dense)) = nearest else {
                return Err(Error::BadInput(
                    "Lifeboat's test stand-in queries by a dense vector only".into(),
                ));
            };
            let search = Search {
                vector: dense.data,
                using: request.using.unwrap_or_default(),
                filter: convert::filter(request.filter)?,
                limit: size(request.limit, 10),
                offset: size(request.offset, 0),
                threshold: request.score_threshold,
            };
            let hits = store.search(&request.collection_name, &search)?;
            let payload = convert::payload_parts(request.with_payload);
            let vectors = convert::vector_parts(request.with_vectors);
            let result = hits.iter().map(|hit| scored(hit, &payload, &vectors));
            Ok(QueryResponse {
                result: result.collect(),
                time: started.elapsed().as_secs_f64(),
                usage: None,
            })
        })
        .await
    }

    async fn scroll(
        &self,
        request: Request<ScrollPoints>,
    ) -> Result<Response<ScrollResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        self.read(move |store| {
            let offset = request.offset.map(|id| convert::point_id(Some(id)));
            let filter = convert::filter(request.filter)?;
            let limit = size(request.limit.map(u64::from), 10);
            let name = &request.collection_name;
            let (points, next) = store.scroll(name, offset.transpose()?, limit, &filter)?;
            let payload = match request.with_payload {
                None => Parts::All,
                selector => convert::payload_parts(selector),
            };
            let vectors = convert::vector_parts(request.with_vectors);
            let record = |point: &Point| retrieved(point, &payload, &vectors);
            Ok(ScrollResponse {
                next_page_offset: next.map(convert::point_id_out),
                result: points.iter().map(record).collect(),
                time: started.elapsed().as_secs_f64(),
                usage: None,
            })
        })
        .await
    }

    async fn count(
        &self,
        request: Request<CountPoints>,
    ) -> Result<Response<CountResponse>, Status> {
        let started = Instant::now();
        let request = request.into_inner();
        self.read(move |store| {
            let filter = convert::filter(request.filter)?;
            let count = store.count(&request.collection_name, &filter)? as u64;
            Ok(CountResponse {
                result: Some(CountResult { count }),
                time: started.elapsed().as_secs_f64(),
                usage: None,
            })
        })
        .await
    }

    unimplemented_methods! {
        delete_vectors: DeletePointVectors => PointsOperationResponse,
        create_vector_name: CreateVectorNameRequest => PointsOperationResponse,
        delete_vector_name: DeleteVectorNameRequest => PointsOperationResponse,
        search_batch: SearchBatchPoints => SearchBatchResponse,
        search_groups: SearchPointGroups => SearchGroupsResponse,
        recommend: RecommendPoints => RecommendResponse,
        recommend_batch: RecommendBatchPoints => RecommendBatchResponse,
        recommend_groups: RecommendPointGroups => RecommendGroupsResponse,
        discover: DiscoverPoints => DiscoverResponse,
        discover_batch: DiscoverBatchPoints => DiscoverBatchResponse,
        update_batch: UpdateBatchPoints => UpdateBatchResponse,
        query_batch: QueryBatchPoints => QueryBatchResponse,
        query_groups: QueryPointGroups => QueryGroupsResponse,
        facet: FacetCounts => FacetResponse,
        search_matrix_pairs: SearchMatrixPoints => SearchMatrixPairsResponse,
        search_matrix_offsets: SearchMatrixPoints => SearchMatrixOffsetsResponse,
    }
}

impl Api {
    async fn edit_payload(
        &self,
        request: Request<SetPayloadPoints>,
        overwrite: bool,
    ) -> Result<Response<PointsOperationResponse>, Status> {
        let started = Instant::now();
        self.write(request, move |store, request| {
            let selection = convert::selection(request.points_selector)?;
            let new = convert::payload(request.payload);
            let op = store.edit_points(&request.collection_name, &selection, &|point| {
                if overwrite {
                    point.payload.clear();
                }
                point.payload.extend(new.clone());
                Ok(())
            })?;
            Ok(completed(op, started))
        })
        .await
    }
}

fn retrieved(point: &Point, payload: &Parts, vectors: &Parts) -> RetrievedPoint {
    RetrievedPoint {
        id: Some(convert::point_id_out(point.id)),
        payload: convert::payload_out(payload.payload(&point.payload)),
        vectors: output_vectors(point, vectors),
        ..RetrievedPoint::default()
    }
}

fn scored((point, score): &(Point, f32), payload: &Parts, vectors: &Parts) -> ScoredPoint {
    ScoredPoint {
        id: Some(convert::point_id_out(point.id)),
        payload: convert::payload_out(payload.payload(&point.payload)),
        score: *score,
        version: point.version,
        vectors: output_vectors(point, vectors),
        ..ScoredPoint::default()
    }
}

fn output_vectors(point: &Point, parts: &Parts) -> Option<qdrant_client::qdrant::VectorsOutput> {
    let wanted = !matches!(parts, Parts::None);
    wanted.then(|| convert::vectors_out(parts.vectors(&point.vectors)))
}

fn completed(operation: u64, started: Instant) -> PointsOperationResponse {
    PointsOperationResponse {
        result: Some(UpdateResult {
            operation_id: Some(operation),
            status: UpdateStatus::Completed.into(),
        }),
        time: started.elapsed().as_secs_f64(),
        usage: None,
    }
}

fn size(given: Option<u64>, default: usize) -> usize {
    given.map_or(default, |n| usize::try_from(n).unwrap_or(usize::MAX))
}
