"""What would happen: requests of a trace against the autoscaling and admission rules, in simulated time.

The autoscaler is the pool's own and its reports are made as a gateway makes them; replicas are an approximation,
described in `replica`. No clock, no Ray, no torch; `aviary.simulate_command` is its face.
"""
