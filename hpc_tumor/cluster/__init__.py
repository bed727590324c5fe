"""Run training on a cluster: profiles, plans, submission, queue and logs.

    describe/ → plan/ → launch/ → node/ (on the nodes) → observe/          convert/: conversion as an array of jobs

`slurm` calls SLURM's commands. Only the ranks load torch. Imported by the commands and `doctor`.
"""
