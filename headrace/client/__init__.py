"""Feature vectors for programs: over HTTP, or straight from the online store by the lookup that the server runs.

    with headrace.FeatureClient("http://localhost:6566") as client:
        vectors = client.get("fraud_v1", {"card_id": ["c1", "c2"]})
        scores = model.predict_proba(vectors.to_pandas())

`AsyncFeatureClient` has the same calls as coroutines.
"""

from __future__ import annotations

from headrace.client.asynchronous import AsyncFeatureClient
from headrace.client.blocking import FeatureClient
from headrace.client.vectors import FeatureVectors, Predictions, Pushed

__all__ = ["AsyncFeatureClient", "FeatureClient", "FeatureVectors", "Predictions", "Pushed"]
