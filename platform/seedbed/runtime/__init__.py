"""The only importer of Ray and MLflow: the Ray Executor, the cluster, and the record."""
