package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/roosthq/roost/internal/failpoint"
)

// failpointsCommand lists the points of a build that has any; tests compare them with their
// tables.
func failpointsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "failpoints",
		Short:  "List the points at which a test can make this build fail or die",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range failpoint.Names() {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// testCommands are those of builds for tests alone.
func testCommands() []*cobra.Command {
	if !failpoint.Enabled {
		return nil
	}
	return []*cobra.Command{failpointsCommand()}
}
