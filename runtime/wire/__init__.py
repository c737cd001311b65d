"""Between core values and protobuf messages: conversion, statuses, authentication. No policy, no state."""
