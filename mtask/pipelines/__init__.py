"""A workflow's tasks on one host, in the place of pegasus-mpi-cluster and pegasus-cluster."""
