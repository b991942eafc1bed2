"""Who lives where: the manager, its replicas and their placement. The only part of the workers that creates actors."""
