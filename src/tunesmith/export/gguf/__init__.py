"""GGUF: conversion, types, quantisation, importance matrix, adapter files."""
