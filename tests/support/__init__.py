"""What several tests share: servers, processes, polling."""
