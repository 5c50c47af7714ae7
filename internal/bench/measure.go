package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// measurement is what one run of a command took, with all its child processes.
type measurement struct {
	wall, cpu time.Duration
	peak      int64 // resident bytes of the largest process
	fromDisk  int64 // bytes that were not in the page cache
}

// measure runs a command to its end.
func measure(ctx context.Context, command []string) (measurement, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1", "LORATOOL_MEMORY=", "LORATOOL_JOBS=")
	cmd.Stderr = os.Stderr
	start := time.Now()
	err := cmd.Run()
	m := measurement{wall: time.Since(start)}
	if err != nil {
		return m, fmt.Errorf("running %q: %w", command, err)
	}
	m.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	m.peak, m.fromDisk = resources(cmd.ProcessState)
	return m, nil
}
