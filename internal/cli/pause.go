package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause ID",
		Short: "Save a sandbox's memory and disk and free the host",
		Long:  "Save a sandbox's memory and disk and free the host. Pausing a paused sandbox is a success.",
		Example: `  roost pause $id
  roost pause $id --json | jq .phases`,
		Args: takes("ID"),
		RunE: a.onSandbox(func(ctx context.Context, c *client, id string) error {
			progress := startBusy(false, "pausing "+id)
			sandbox, err := answer[v1.Sandbox](c.api.PauseSandboxWithResponse(ctx, id, v1.Pause{}))
			progress.stop()
			if err != nil {
				return err
			}
			return a.showSandbox(sandbox, printID)
		}),
	}
}
