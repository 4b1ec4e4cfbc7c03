"""Flower, the web page on which each plan shows as a task. All options: https://flower.readthedocs.io"""

address = "0.0.0.0"
port = 5555

# The page lists finished plans as long as it runs, up to this many.
max_tasks = 10_000
tasks_columns = "name,uuid,state,args,result,received,started,runtime,worker"
natural_time = True
inspect_timeout = 2000.0  # milliseconds

# Kept over restarts: set a path on a volume.
# persistent = True
# db = "/data/flower.db"

# Anybody who reaches the page can cancel plans. docker-compose.yml publishes it on the host's loopback interface
# only; before it goes any further, ask for a password:
# basic_auth = ["somebody:a-long-password"]
