"""What one connection gets: SSE, WebSocket and polling, free of any framework."""
