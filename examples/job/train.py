"""A job: a script that knows nothing of the cluster. It reads its parameters, prints, reports, leaves a file."""

import json
import os
import time
from pathlib import Path

params = json.loads(Path(os.environ["SOMA_JOB_PARAMS"]).read_text())
epochs, rate = params.get("epochs", 20), params.get("lr", 0.1)

print(f"training for {epochs} epochs")
weight = 4.0
for epoch in range(1, epochs + 1):
    weight -= rate * 2 * weight  # the gradient of weight²
    time.sleep(0.1)
    print(json.dumps({"step": epoch, "total": epochs, "metrics": {"loss": weight**2}}))
    if epoch % 5 == 0:
        print(f"epoch {epoch}: {weight=:.4f}")

with open("outputs/model.json", "w") as file:
    json.dump({"weight": weight}, file)
print(json.dumps({"loss": weight**2}))
