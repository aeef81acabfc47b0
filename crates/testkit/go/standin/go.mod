module muster.dev/testkit/standin

go 1.26.0
