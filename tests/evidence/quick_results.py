"""Results of the quick made-up experiments."""

import quick_experiment

from repertory.evidence.runner import Study, run_all, tasks_of
from repertory.evidence.summary import summarise

PUBLISHED = [
    {"metric": "top-1 error", "value": 21.28, "unit": "%", "setting": "CIFAR-100, ResNet-18", "source": "code"},
    {"metric": "top-1 error", "value": 41.71, "unit": "%", "setting": "TinyImageNet, <ResNet-18>", "source": "code"},
]


def results_of(names, scale, out, seeds=None):
    """The results of experiments of ``quick_experiment``, run in ``out``."""
    facts = {"title": "A Title & More", "venue": "Venue", "year": 2021, "published": PUBLISHED}
    studies = [
        Study(getattr(quick_experiment, name), f"quick_experiment:{name}", "1", facts if name == "EXPERIMENT" else {})
        for name in names
    ]
    tasks = [task for study in studies for task in tasks_of(study, scale, seeds, out)]
    return summarise(studies, run_all(tasks, {}), scale)
