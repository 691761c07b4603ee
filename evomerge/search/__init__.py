"""The ask → dispatch → tell loop: baselines first, workers that may die, a verdict at the end.

Import the module that is needed: ``session`` runs a whole search, ``loop`` its core, ``workers``
alone knows Ray, ``sampler``, ``cmaes`` and ``storage`` alone know Optuna.
"""
