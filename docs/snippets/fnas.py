from repertory.data import load
from repertory.systems.fnas import SearchSettings, TrainedAccuracy, miniature, search
from repertory.training import FitSettings

space = miniature(input_size=(1, 8, 8))  # SearchSpace() is the mobile space at 224 pixels
evaluate = TrainedAccuracy(load("digits"), FitSettings(epochs=1, batch_size=256, accelerator="cpu"))
result = search(space, evaluate, settings=SearchSettings(trainings=4, batch_size=4), out="searches/digits")

print(result.best.architecture.key, result.best.accuracy)
network = result.network()  # new weights: train it in the ordinary way
