package main

import (
	"context"
	"os"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/paths"
)

// localDoctor checks this machine when no server answers.
func localDoctor(ctx context.Context) []v1.Check {
	var out []v1.Check
	for _, f := range doctor.Run(ctx, doctor.Host(dataDir())) {
		check := v1.Check{Name: f.Name, Status: v1.CheckStatus(f.Status), Detail: f.Detail}
		if f.Hint != "" {
			check.Hint = &f.Hint
		}
		out = append(out, check)
	}
	return out
}

func dataDir() string {
	if dir := os.Getenv("ROOST_DATA"); dir != "" {
		return dir
	}
	return paths.DefaultData
}
