package network

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

const stateName = "network.json"

// state is what outlives the agent: network.json.
type state struct {
	Installation string `json:"installation"`
	Subnet       string `json:"subnet"`
	// ForwardingBoot is the boot in which this installation found ip_forward at 0 and set it;
	// empty: it was on. A reboot makes the record void, since it resets the value.
	ForwardingBoot string `json:"forwarding_boot,omitempty"`
}

func loadState(dir string) (state, error) {
	var s state
	data, err := os.ReadFile(filepath.Join(dir, stateName))
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// save publishes the state by rename, synced.
func (s state) save(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, stateName+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, stateName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func removeState(dir string) error {
	err := os.Remove(filepath.Join(dir, stateName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}
